"""A snapshot in a search engine beyond this process: pushed, checked, and asked as the store itself is.

The shards stay the source of truth; an engine's rows can be thrown away and pushed again. Which engine it is, is the
business of another file (qdrant.py); here are the rules that hold for any: what has to be pushed, how wide to search
for a recall, and whether the engine holds this very snapshot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .block import Block, Mask, Vectors, distinct
from .deleted import read_deleted
from .errors import BadBlock, Damaged, NoStore, NotAStore, StoreError
from .filter import Filter
from .index import compared
from .manifest import Part
from .search import Matches, Positions
from .shard import checksum
from .snapshot import Snapshot
from .space import Space

FORMAT = "clipfake-rows"
VERSION = 1
CARD = 0  # id of the note that says what the engine holds; note n is the receipt of shard n, rows have ids from 2³² on
BATCH_ROWS = 1024  # pushed at a time
UNDER_WAY = -1  # instead of the number of rows, in a shard's receipt
EXACT_ROWS = 20_000  # a filter for no more rows is searched exactly: a few milliseconds
SOURCES_NAMED = 50  # in one filter, at most
MASK_ROWS = 100_000  # a mask that is no filter: searched exactly in the shards, up to so many rows
K = 10  # what recall is measured at
QUERIES = 100  # of the store's own vectors, half to plan with and half to check the plan
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # candidates that a search keeps
NEAR = 4.0  # a measured filter speaks for filters of a quarter to four times its rows

Ids = npt.NDArray[np.int64]  # (rows,) as in Snapshot.ids


@dataclass(frozen=True)
class Allowed:
    """Which rows an engine may answer with."""

    which: Filter  # of label, source, generator and category; its keys are told as ids
    ids: tuple[int, ...] | None = None


class Engine(Protocol):
    """What an engine has to do. A row's id there is its id in the store; notes are points without a vector."""

    @property
    def name(self) -> str:
        """Where it is, for people."""
        ...

    def there(self) -> bool:
        """Whether there is anything at that place."""
        ...

    def create(self, space: Space) -> None:
        """Make what is missing: the place, and its indexes of labels, sources, … before the first vector."""
        ...

    def remove(self) -> None:
        """Drop everything at that place."""
        ...

    def note(self, id: int, text: dict[str, Any]) -> None:  # noqa: A002
        """Write a note. Whoever finds it finds what was put before it."""
        ...

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        """Rows in; writing a row again changes nothing."""
        ...

    def drop(self, ids: Sequence[int]) -> None:
        """Rows or notes out; ids that are not there are passed over."""
        ...

    def drop_shard(self, number: int) -> None:
        """All rows of one shard out."""
        ...

    def ids_of(self, number: int) -> Ids:
        """The rows of one shard that are there, ascending."""
        ...

    def counts(self) -> dict[int, int]:
        """shard number -> rows that are there, exactly."""
        ...

    def count(self, allowed: Allowed) -> int:
        """Points that are allowed: notes too, unless something is required of them."""
        ...

    def search(self, queries: Vectors, k: int, allowed: Allowed, width: int | None) -> tuple[Ids, Vectors]:
        """(queries, k) ids, -1 for none, and similarities; `width` candidates, 0 the engine's own, None exactly."""
        ...

    def rows(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What is told of these rows (key, label, source, …) or notes; those that are there."""
        ...

    def settle(self) -> None:
        """Build the indexes and wait until they are there."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How many candidates a search has to keep for a recall@10: measured with the store's own vectors and filters."""

    widths: tuple[int, ...] = ()  # rising
    shares: tuple[float, ...] = ()  # of the rows, that each measured filter allowed
    recalls: tuple[tuple[float, ...], ...] = ()  # (filters, widths)
    margin: int = 0  # so many steps wider than the measurement says: it was a sample

    def width(self, recall: float, share: float, k: int = K) -> int | None:
        """Candidates for a filter that allows this share of the rows, None where only an exact search will do.

        Half the misses that were asked for are aimed at, and the dearest of the filters of about that share counts.

        >>> plan = Plan((64, 128), (1.0, 0.1), ((0.99, 1.0), (0.7, 0.9)))
        >>> plan.width(0.98, 0.9), plan.width(0.98, 0.1), plan.width(1.0, 0.9)
        (64, None, None)
        """
        if recall >= 1 or not self.shares:
            return None
        aim = 1 - (1 - recall) / 2
        shares = np.array(self.shares)
        near = (shares * NEAR >= share) & (shares <= share * NEAR)
        for side in (shares >= share, shares <= share):  # and the next one on either side
            if side.any():
                near[np.flatnonzero(side)[np.abs(shares[side] - share).argmin()]] = True
        step = 0
        for measured in np.array(self.recalls)[near]:
            enough = np.flatnonzero(measured >= aim)
            if not len(enough):
                return None
            step = max(step, int(enough[0]))
        if step + self.margin >= len(self.widths):
            return None
        return round(self.widths[step + self.margin] * max(1.0, k / K))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Plan:
        recalls = tuple(tuple(map(float, row)) for row in told["recalls"])
        return cls(tuple(told["widths"]), tuple(told["shares"]), recalls, int(told["margin"]))


@dataclass(frozen=True)
class Card:
    """What an engine holds, as it says itself."""

    space: Space
    snapshot: int
    rows: int
    content: str  # digest over the shards and their deleted rows; equal for equal rows
    complete: bool = False  # False while a push is under way, or after it was killed
    plan: Plan = Plan()
    recall: dict[str, float] = field(default_factory=dict)  # filter -> recall@10 when it was pushed

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Card:
        given = {f.name: told[f.name] for f in fields(cls)}
        return cls(**{**given, "space": Space.from_json(told["space"]), "plan": Plan.from_json(told["plan"])})


@dataclass(frozen=True)
class Pushed:
    """What `push` did, or has done so far."""

    to: str
    snapshot: int
    rows: int  # of the snapshot; as many are in the engine at the end
    pushed: int = 0
    kept: int = 0  # were there already
    dropped: int = 0  # were there and are not in the snapshot
    recall: dict[str, float] = field(default_factory=dict)  # filter -> recall@10 against exact search, as planned
    recall_unplanned: dict[str, float] = field(default_factory=dict)  # the same with the engine's own defaults
    queries: int = 0  # that recall was measured with
    margin: int = 0  # steps that the plan had to be widened by; beyond the last, all is searched exactly
    seconds: dict[str, float] = field(default_factory=dict)  # push, index, check

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[Pushed], None]


def content_of(parts: Sequence[Part]) -> str:
    """The digest of which rows these are."""
    return checksum(json.dumps([(p.name, p.header, p.deleted_digest) for p in parts]).encode())


def read_card(engine: Engine) -> Card:
    """What the engine says it holds.

    Raises
    ------
    NoStore
        There is nothing.
    NotAStore
        There is something that clipfake did not put there, or another release did.
    """
    if not engine.there():
        raise NoStore(f"there is nothing at {engine.name}; fill it with `clipfake store push`")
    told = engine.rows([CARD]).get(CARD)
    try:
        if told is None or (told["format"], told["version"]) != (FORMAT, VERSION):
            raise NotAStore(f"{engine.name} was not filled by this release of clipfake; name another place")
        return Card.from_json(told)
    except (KeyError, TypeError, ValueError) as e:
        raise NotAStore(f"{engine.name} says what it holds in a way this release cannot read ({e!r})") from e


def push(
    snapshot: Snapshot,
    engine: Engine,
    *,
    recall: float = 0.99,
    queries: int = QUERIES,
    seed: int = 0,
    anew: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Bring an engine to this snapshot: rows that are missing in, rows that are gone out; then count and ask it.

    Killed at any moment, the same call goes on from what is there. Until it has ended well `ask` refuses the engine.

    Parameters
    ----------
    recall
        What the plan is widened for until it is reached.
    queries
        To measure with; 0 measures nothing, and every search is exact then.
    anew
        Drop what is there first.

    Raises
    ------
    SpaceMismatch, NotAStore
        What is there is of another encoder, another store, or not of clipfake.
    Damaged
        The engine does not hold what was pushed.
    """
    clock: dict[str, float] = {}
    if anew and engine.there():
        engine.remove()
    told = Pushed(engine.name, snapshot.number, len(snapshot))
    parts = snapshot.manifest.parts
    began = time.monotonic()
    before = _begin(snapshot, engine)
    for so_far in _filled(snapshot, engine, before, told):
        told = so_far
        if progress:
            progress(replace(told, seconds={"push": round(time.monotonic() - began, 2)}))
    clock["push"] = time.monotonic() - began
    engine.settle()
    clock["index"] = time.monotonic() - began - clock["push"]
    _require_counts(parts, engine)
    measured = _Measured(snapshot, engine, queries, seed)
    plan, found = measured.planned(recall)
    clock["check"] = time.monotonic() - began - sum(clock.values())
    card = Card(snapshot.space, snapshot.number, len(snapshot), content_of(parts), True, plan, found)
    engine.note(CARD, card.as_json())
    told = replace(
        told,
        recall=found,
        recall_unplanned=measured.unplanned,
        queries=measured.count,
        margin=plan.margin,
        seconds={name: round(seconds, 2) for name, seconds in clock.items()},
    )
    if progress:
        progress(told)
    return told


def ask(snapshot: Snapshot, engine: Engine) -> Asked:
    """The engine as this snapshot's search.

    Raises
    ------
    NoStore, NotAStore, SpaceMismatch
    StoreError
        It holds other rows than the snapshot, or half of a push.
    """
    card = read_card(engine)
    card.space.require(snapshot.space, engine.name)
    remote = Remote(engine, card)
    if card.content != content_of(snapshot.manifest.parts):
        raise StoreError(
            f"{engine.name} holds {card.rows} rows of snapshot {card.snapshot}, this is snapshot {snapshot.number} "
            f"with {len(snapshot)} rows; run `clipfake store push` to bring it up to date"
        )
    return Asked(snapshot, remote)


class Remote:
    """A filled engine without the shards: answers are row ids and the engine's own similarities."""

    def __init__(self, engine: Engine, card: Card | None = None) -> None:
        """Raises what `read_card` raises, and StoreError for half of a push."""
        self.engine = engine
        self.card = card or read_card(engine)
        if not self.card.complete:
            raise StoreError(
                f"a push to {engine.name} did not end; run `clipfake store push` again, it goes on from there"
            )
        self._counted: dict[str, int] = {}

    def search(self, queries: Vectors, k: int, which: Filter = Filter(), recall: float = 0.99) -> Matches:
        """The k nearest rows of each query that a filter allows; `rows` are row ids, as `describe` takes them."""
        if which.keys:
            raise BadBlock("keys are looked up in the shards; ask with the store at hand, or filter by source")
        return self.nearest(queries, k, Allowed(which), recall)

    def nearest(self, queries: Vectors, k: int, allowed: Allowed, recall: float) -> Matches:
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if queries.shape[1] != self.card.space.dim:
            raise BadBlock(f"queries of {queries.shape[1]} dimensions against {self.engine.name}: {self.card.space}")
        result = Matches.none(len(queries), k)
        count = self.count(allowed)
        if not count or not len(queries):
            return result
        ids, similarity = self.engine.search(queries, min(k, count), allowed, self.width(count, k, recall))
        return result.merge(Matches(ids, np.asarray(similarity, np.float32)), k)

    def width(self, count: int, k: int, recall: float = 0.99) -> int | None:
        """Candidates that a search of so many allowed rows keeps, None where it is exact."""
        return None if count <= EXACT_ROWS else self.card.plan.width(recall, count / self.card.rows, k)

    def describe(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """id -> key, label, source, generator, category of some rows."""
        return self.engine.rows(ids)

    def count(self, allowed: Allowed) -> int:
        """How many rows are allowed; asked of the engine once a filter."""
        which = allowed.which
        if allowed.ids is not None:
            return self.engine.count(allowed)
        if which.everything:
            return self.card.rows
        if which == Filter(but_sources=which.but_sources):  # the notes have no source either
            return self.card.rows - self.count(Allowed(Filter(sources=which.but_sources)))
        if (name := repr(which)) not in self._counted:
            self._counted[name] = self.engine.count(allowed)
        return self._counted[name]


class Asked:
    """An engine as one snapshot may use it: positions in, positions out, similarities of the stored vectors."""

    def __init__(self, snapshot: Snapshot, remote: Remote) -> None:
        self.snapshot, self.remote = snapshot, remote

    def search(self, queries: Vectors, k: int, where: Filter | Mask | None = None, recall: float = 0.99) -> Matches:
        """As `Snapshot.search`: the k nearest rows of each query, ranked by the vectors as the shards have them.

        A mask is allowed where it is all rows, the rows of one label with or without some sources, or of few rows.
        """
        queries = np.atleast_2d(np.asarray(queries, np.float32))
        if not isinstance(where, Filter | None):
            named = self._named(np.asarray(where))
            if named is None:
                return self.snapshot.search(queries, k, where, recall=1)
            where = named
        which = where or Filter()
        ids = None
        if which.keys:
            positions = self.snapshot.find(list(which.keys))
            ids = tuple(self.snapshot.ids[positions[positions >= 0]].tolist())
        allowed = Allowed(replace(which, keys=()), ids)
        found = self.remote.nearest(queries, fetched(k), allowed, recall)
        return compared(self.snapshot, queries, positions_of(self.snapshot, found.rows), k)

    def _named(self, mask: Mask) -> Filter | None:
        """The filter that a mask is, None for one that is better searched in the shards."""
        count = int(np.count_nonzero(mask))
        if mask.shape != (len(self.snapshot),) or mask.dtype != np.bool_ or count <= EXACT_ROWS:
            return None
        if count == len(mask):
            return Filter()
        labels = self.snapshot.column("labels")
        label = int(labels[np.argmax(mask)])
        if (found := self._label_without_sources(mask, label)) is not None:
            return found
        if count <= MASK_ROWS:
            return None
        raise BadBlock(f"a mask of {count} rows cannot be told to {self.remote.engine.name}; give a Filter")

    def _label_without_sources(self, mask: Mask, label: int) -> Filter | None:
        """The filter that the mask is, if it is all rows of a label but those of some sources."""
        rest = (self.snapshot.column("labels") == label) ^ mask  # what is left out, if the mask is of this label
        sources = self.snapshot.column("sources")
        left_out = distinct(sources[rest])[0].tolist()
        found = Filter(labels=(label,), but_sources=left_out[:SOURCES_NAMED])
        return found if np.array_equal(found.mask(self.snapshot), mask) else None


def fetched(k: int) -> int:
    """A few more than wanted: an engine adds up in another order, and near-equal rows may change places."""
    return k + max(4, k // 4)


def filters_of(snapshot: Snapshot, rng: np.random.Generator) -> dict[str, Filter]:
    """Filters to measure with, from all rows down to few.

    Many small values together are the dearest kind: a graph has edges for the rows of one value, none for their union.
    """
    made = {"all": Filter()}
    labels = np.unique(snapshot.column("labels")).tolist()
    for label in labels:
        made[f"label {label}"] = Filter(labels=(label,))
    sources, shares = _values(snapshot, "sources", rng)
    if len(sources) > 1:
        made["all but one source"] = Filter(but_sources=(sources[0],))
    for part in (2, 8):
        if 1 < len(some := sources[: np.searchsorted(np.cumsum(shares), 1 / part) + 1]) < len(sources):
            made[f"{len(some)} of {len(sources)} sources"] = Filter(sources=tuple(some))
    categories, shares = _values(snapshot, "categories", rng)
    for part in (2, 6, 18, 54):
        if 1 < len(some := categories[: np.searchsorted(np.cumsum(shares), 1 / part) + 1]) < len(categories):
            made[f"{len(some)} of {len(categories)} categories"] = Filter(categories=tuple(some))
            both = Filter(labels=tuple(labels[:1]), categories=tuple(some))
            made[f"label {labels[0]} in {len(some)} categories"] = both
    return made


def _values(snapshot: Snapshot, column: str, rng: np.random.Generator) -> tuple[list[str], npt.NDArray[np.float64]]:
    """What stands in a column, and the share of the rows that each has, in a mixed order."""
    # with the index a stable sort is taken: numpy 2.4's quicksort of texts crashes on columns of several sorted runs
    values, _, counts = np.unique(snapshot.column(column), return_index=True, return_counts=True)
    mixed = rng.permutation(len(values))
    return values[mixed].tolist(), counts[mixed] / max(len(snapshot), 1)


class _Measured:
    """An engine's answers beside exact ones: to make a plan with half of the queries and to check it with the others.

    A row counts as found if it is as near as the tenth of the exact answer, whichever of several copies it is.
    """

    def __init__(self, snapshot: Snapshot, engine: Engine, count: int, seed: int) -> None:
        self.snapshot, self.engine = snapshot, engine
        rng = np.random.default_rng(seed)
        self.count = min(count, len(snapshot)) // 2 * 2
        self.queries = snapshot.vectors(np.sort(rng.permutation(len(snapshot))[: self.count]))
        self.filters = filters_of(snapshot, rng) if self.count else {}
        self._shares: dict[str, float] = {}
        self._tenth: dict[str, npt.NDArray[np.float32]] = {}  # (queries, 1) similarity of the tenth, or last, row
        self._reach: dict[str, int] = {}  # rows there are to find, at most ten
        for name, which in self.filters.items():
            mask = which.mask(snapshot)
            rows = int(np.count_nonzero(mask))
            if rows:
                true = snapshot.search(self.queries, K, mask, recall=1)
                self._reach[name] = min(rows, K)
                self._tenth[name] = true.similarity[:, self._reach[name] - 1 : self._reach[name]]
                self._shares[name] = rows / len(snapshot)
        self.unplanned: dict[str, float] = {}

    def planned(self, recall: float) -> tuple[Plan, dict[str, float]]:
        """The narrowest plan that reaches the recall with every filter, and what it reached."""
        half, checking = slice(0, None, 2), slice(1, None, 2)
        wide = {name: share for name, share in self._shares.items() if share * len(self.snapshot) > EXACT_ROWS}
        recalls = []
        for name in wide:
            row: list[float] = []
            for width in WIDTHS:
                row.append(1.0 if row and row[-1] == 1 else self._recall(name, half, width))
            recalls.append(tuple(row))
        self.unplanned = {name: self._recall(name, checking, 0) for name in self._shares}
        for margin in range(len(WIDTHS) + 1):
            plan = Plan(WIDTHS, tuple(wide.values()), tuple(recalls), margin)
            found = {
                name: self._recall(name, checking, plan.width(recall, share) if name in wide else None)
                for name, share in self._shares.items()
            }
            if min(found.values(), default=1.0) >= recall:
                return plan if self.count else Plan(), found
        wrong = min(found, key=lambda name: found[name])
        raise Damaged(
            f"{self.engine.name} finds {found[wrong]:.3f} of the nearest rows ({wrong}) even where it searches "
            f"exactly; it does not hold these vectors. Run `clipfake store push --anew`"
        )

    def _recall(self, name: str, part: slice, width: int | None) -> float:
        queries, reach = self.queries[part], self._reach[name]
        k = reach if width == 0 else fetched(reach)  # as `Asked` does it; the engine alone gives what it is asked for
        ids, _ = self.engine.search(queries, k, Allowed(self.filters[name]), width)
        similarity = compared(self.snapshot, queries, positions_of(self.snapshot, ids), reach).similarity
        # rounding differs between one product and many; two rows that differ by less are equally near
        right = similarity >= self._tenth[name][part] - 1e-5
        return round(float(right.sum() / right.size), 4)


def _begin(snapshot: Snapshot, engine: Engine) -> dict[int, dict[str, Any]]:
    """Make the place ready and note that it is being filled; returns the receipts of shards that are there."""
    parts = snapshot.manifest.parts
    begun = Card(snapshot.space, snapshot.number, len(snapshot), content_of(parts))
    if engine.there():
        try:
            read_card(engine).space.require(snapshot.space, engine.name)
        except NotAStore:
            if engine.count(Allowed(Filter())):  # nothing is in what was killed before it was noted what it is
                raise
    engine.create(snapshot.space)
    receipts = engine.rows(sorted(engine.counts().keys() | {part.number for part in parts}))
    headers = {part.number: part.header for part in parts}
    both = receipts.keys() & headers.keys()
    if any(receipts[n]["header"] != headers[n] for n in both) or (receipts and parts and not both):
        raise NotAStore(
            f"{engine.name} holds rows of another store, or of this one before `compact`; name another place, "
            f"or drop what is there with `clipfake store push --anew`"
        )
    engine.note(CARD, begun.as_json())
    return receipts


def _filled(snapshot: Snapshot, engine: Engine, receipts: dict[int, dict[str, Any]], told: Pushed) -> Iterator[Pushed]:
    """Shard by shard: a shard with a receipt and the right count is not looked at again."""
    counts, start = engine.counts(), 0
    parts = snapshot.manifest.parts
    for number in sorted((counts.keys() | receipts.keys()) - {part.number for part in parts}):
        engine.drop_shard(number)
        engine.drop([number])
        told = replace(told, dropped=told.dropped + counts.get(number, 0))
        yield told
    for part in parts:
        alive = part.rows - part.deleted_rows
        receipt = {"header": part.header, "deleted": part.deleted_digest, "rows": alive}
        if receipts.get(part.number) == receipt and counts.get(part.number, 0) == alive:
            told = replace(told, kept=told.kept + alive)
        else:
            ids = _ids_of(snapshot, part)
            there = engine.ids_of(part.number) if counts.get(part.number) else np.zeros(0, np.int64)
            gone = np.setdiff1d(there, ids)
            if len(gone):
                engine.drop(gone.tolist())
            missing = np.flatnonzero(~np.isin(ids, there))
            told = replace(told, kept=told.kept + alive - len(missing), dropped=told.dropped + len(gone))
            # first whose rows these are, should the next shard of that number be another store's
            engine.note(part.number, {**receipt, "rows": UNDER_WAY})
            blocks = snapshot.blocks(BATCH_ROWS, where=start + missing) if len(missing) else iter(())
            for at, block in zip(range(0, len(missing), BATCH_ROWS), blocks, strict=True):
                engine.put(ids[missing[at : at + BATCH_ROWS]], block.vectors, payloads_of(block, part.number))
                told = replace(told, pushed=told.pushed + len(block))
                yield told
            engine.note(part.number, receipt)
        start += alive
        yield told


def payloads_of(block: Block, shard: int) -> list[dict[str, Any]]:
    """What an engine knows of each row beside its vector."""
    rows = block.rows
    columns = (rows.keys, rows.labels, rows.sources, rows.generators, rows.categories)
    names = ("key", "label", "source", "generator", "category")
    return [
        {**dict(zip(names, one, strict=True)), "shard": shard}
        for one in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _ids_of(snapshot: Snapshot, part: Part) -> Ids:
    """The live rows of a shard; for one shard at a time, as ids of all would be eight bytes a row."""
    rows = np.arange(part.rows, dtype=np.int64)
    if part.deleted:
        rows = np.delete(rows, read_deleted(snapshot.folder, part))
    return (part.number << 32) + rows


def _require_counts(parts: Sequence[Part], engine: Engine) -> None:
    wanted = {part.number: part.rows - part.deleted_rows for part in parts}
    there = engine.counts()
    for number in sorted(wanted.keys() | there.keys()):
        if wanted.get(number, 0) != there.get(number, 0):
            raise Damaged(
                f"{engine.name} holds {there.get(number, 0)} rows of shard {number} after the push instead of "
                f"{wanted.get(number, 0)}; is another process writing to it? Run `clipfake store push` again"
            )


def positions_of(snapshot: Snapshot, ids: Ids) -> Positions:
    """Positions of row ids as `Remote.search` gives them, -1 where the snapshot does not have one."""
    places = np.full(ids.shape, -1, np.int64)
    places[ids >= 0] = snapshot.places(ids[ids >= 0])
    return places
