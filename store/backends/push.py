"""A snapshot brought into an engine: rows that are missing in, rows that are gone out, and the recall measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import Damaged, NotAStore
from ..filter import Filter
from ..manifest import ShardRef
from ..records import Block, Ids
from ..snapshot import Snapshot
from ..tombstones import read_tombstones
from .backend_manifest import CARD, BackendManifest, content_of, read_backend_manifest
from .base import BackendFilter, SearchBackend
from .recall import RecallMeasurement

BATCH_ROWS = 1024  # pushed at a time
UNDER_WAY = -1  # instead of the number of rows, in a shard's receipt
QUERIES = 100  # of the store's own vectors, half to plan with and half to check the plan


@dataclass(frozen=True)
class PushReport:
    """Report of `push`, updated while it runs."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Progress = Callable[[PushReport], None]


def push(
    snapshot: Snapshot,
    engine: SearchBackend,
    *,
    recall: float = 0.99,
    queries: int = QUERIES,
    seed: int = 0,
    anew: bool = False,
    progress: Progress | None = None,
) -> PushReport:
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
    report = PushReport(engine.name, snapshot.number, len(snapshot))
    parts = snapshot.manifest.parts
    began = time.monotonic()
    before = _begin(snapshot, engine)
    for so_far in _filled(snapshot, engine, before, report):
        report = so_far
        if progress:
            progress(replace(report, seconds={"push": round(time.monotonic() - began, 2)}))
    clock["push"] = time.monotonic() - began
    engine.settle()
    clock["index"] = time.monotonic() - began - clock["push"]
    _require_counts(parts, engine)
    measured = RecallMeasurement(snapshot, engine, queries, seed)
    plan, found = measured.planned(recall)
    clock["check"] = time.monotonic() - began - sum(clock.values())
    card = BackendManifest(snapshot.space, snapshot.number, len(snapshot), content_of(parts), True, plan, found)
    engine.note(CARD, card.to_dict())
    report = replace(
        report,
        recall=found,
        recall_unplanned=measured.unplanned,
        queries=measured.count,
        margin=plan.margin,
        seconds={name: round(seconds, 2) for name, seconds in clock.items()},
    )
    if progress:
        progress(report)
    return report


def _begin(snapshot: Snapshot, engine: SearchBackend) -> dict[int, dict[str, Any]]:
    """Make the place ready and note that it is being filled; returns the receipts of shards that are there."""
    parts = snapshot.manifest.parts
    begun = BackendManifest(snapshot.space, snapshot.number, len(snapshot), content_of(parts))
    if engine.there():
        try:
            snapshot.space.require(read_backend_manifest(engine).space, engine.name)
        except NotAStore:
            if engine.count(BackendFilter(Filter())):  # nothing is in what was killed before it was noted what it is
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
    engine.note(CARD, begun.to_dict())
    return receipts


def _filled(
    snapshot: Snapshot, engine: SearchBackend, receipts: dict[int, dict[str, Any]], report: PushReport
) -> Iterator[PushReport]:
    """Shard by shard: a shard with a receipt and the right count is not looked at again."""
    counts, start = engine.counts(), 0
    parts = snapshot.manifest.parts
    for number in sorted((counts.keys() | receipts.keys()) - {part.number for part in parts}):
        engine.drop_shard(number)
        engine.drop([number])
        report = replace(report, dropped=report.dropped + counts.get(number, 0))
        yield report
    for part in parts:
        alive = part.rows - part.deleted_rows
        receipt = {"header": part.header, "deleted": part.deleted_digest, "rows": alive}
        if receipts.get(part.number) == receipt and counts.get(part.number, 0) == alive:
            report = replace(report, kept=report.kept + alive)
        else:
            ids = _ids_of(snapshot, part)
            there = engine.ids_of(part.number) if counts.get(part.number) else np.zeros(0, np.int64)
            gone = np.setdiff1d(there, ids)
            if len(gone):
                engine.drop(gone.tolist())
            missing = np.flatnonzero(~np.isin(ids, there))
            report = replace(report, kept=report.kept + alive - len(missing), dropped=report.dropped + len(gone))
            # first whose rows these are, should the next shard of that number be another store's
            engine.note(part.number, {**receipt, "rows": UNDER_WAY})
            blocks = snapshot.blocks(BATCH_ROWS, where=start + missing) if len(missing) else iter(())
            for at, block in zip(range(0, len(missing), BATCH_ROWS), blocks, strict=True):
                engine.put(ids[missing[at : at + BATCH_ROWS]], block.vectors, payloads_of(block, part.number))
                report = replace(report, pushed=report.pushed + len(block))
                yield report
            engine.note(part.number, receipt)
        start += alive
        yield report


def payloads_of(block: Block, shard: int) -> list[dict[str, Any]]:
    """Return what a back end stores of each row beside its vector."""
    rows = block.rows
    columns = (rows.keys, rows.labels, rows.sources, rows.generators, rows.categories)
    names = ("key", "label", "source", "generator", "category")
    return [
        {**dict(zip(names, one, strict=True)), "shard": shard}
        for one in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _ids_of(snapshot: Snapshot, part: ShardRef) -> Ids:
    """The live rows of a shard; for one shard at a time, as ids of all would be eight bytes a row."""
    rows = np.arange(part.rows, dtype=np.int64)
    if part.deleted:
        rows = np.delete(rows, read_tombstones(snapshot.folder, part))
    return (part.number << 32) + rows


def _require_counts(parts: Sequence[ShardRef], engine: SearchBackend) -> None:
    wanted = {part.number: part.rows - part.deleted_rows for part in parts}
    there = engine.counts()
    for number in sorted(wanted.keys() | there.keys()):
        if wanted.get(number, 0) != there.get(number, 0):
            raise Damaged(
                f"{engine.name} holds {there.get(number, 0)} rows of shard {number} after the push instead of "
                f"{wanted.get(number, 0)}; is another process writing to it? Run `clipfake store push` again"
            )
