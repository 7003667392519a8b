"""Copy a snapshot to a search back end: add missing rows, delete those that are gone, and measure the recall."""

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
from .backend_manifest import MANIFEST_ID, BackendManifest, content_of, read_backend_manifest
from .base import BackendFilter, SearchBackend
from .recall import RecallMeasurement

BATCH_ROWS = 1024  # rows per write
UNFINISHED = -1  # number of rows in the receipt of a shard that is being written


@dataclass(frozen=True)
class PushOptions:
    """Options of `push`."""

    recall: float = 0.99  # recall@10 for which the search plan is widened
    queries: int = 100  # of the store's own vectors: half make the plan, half check it; 0 searches exactly instead
    seed: int = 0  # of the choice of queries and filters
    anew: bool = False  # delete the contents of the back end first


@dataclass(frozen=True)
class PushReport:
    """Report of `push`, updated while it runs."""

    to: str
    snapshot: int
    rows: int  # of the snapshot, and of the back end at the end
    pushed: int = 0
    kept: int = 0  # in the back end before
    dropped: int = 0  # deleted from the back end because the snapshot does not have them
    recall: dict[str, float] = field(default_factory=dict)  # filter -> recall@10 against exact search, with the plan
    recall_unplanned: dict[str, float] = field(default_factory=dict)  # the same with the back end's defaults
    queries: int = 0  # used to measure recall
    margin: int = 0  # steps by which the plan had to be widened; after the last one every search is exact
    seconds: dict[str, float] = field(default_factory=dict)  # push, index, check

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PushProgress = Callable[[PushReport], None]


def push(
    snapshot: Snapshot,
    backend: SearchBackend,
    options: PushOptions = PushOptions(),
    on_progress: PushProgress | None = None,
) -> PushReport:
    """Bring a back end to this snapshot: add and delete rows, verify their number, and measure the recall.

    A push that was interrupted continues when called again. Until it has finished, the back end cannot be searched.

    Raises
    ------
    SpaceMismatch, NotAStore
        The back end holds vectors of another encoder, rows of another store, or data of another program.
    Damaged
        The back end does not hold what was pushed.
    """
    if options.anew and backend.exists():
        backend.remove()
    report = PushReport(backend.name, snapshot.number, len(snapshot))
    started = time.monotonic()
    receipts = _prepare(snapshot, backend)
    for updated in _copy(snapshot, backend, receipts, report):
        report = updated
        if on_progress:
            on_progress(replace(report, seconds={"push": round(time.monotonic() - started, 2)}))
    pushed = time.monotonic()
    backend.build_indexes()
    indexed = time.monotonic()
    shards = snapshot.manifest.parts
    _require_counts(shards, backend)
    measurement = RecallMeasurement(snapshot, backend, options.queries, options.seed)
    plan, recall = measurement.planned(options.recall)
    seconds = {"push": pushed - started, "index": indexed - pushed, "check": time.monotonic() - indexed}
    manifest = BackendManifest(
        snapshot.space, snapshot.number, len(snapshot), content_of(shards), complete=True, plan=plan, recall=recall
    )
    backend.write_note(MANIFEST_ID, manifest.to_dict())
    report = replace(
        report,
        recall=recall,
        recall_unplanned=measurement.unplanned,
        queries=measurement.count,
        margin=plan.margin,
        seconds={name: round(duration, 2) for name, duration in seconds.items()},
    )
    if on_progress:
        on_progress(report)
    return report


def _prepare(snapshot: Snapshot, backend: SearchBackend) -> dict[int, dict[str, Any]]:
    """Create the collection, mark it as incomplete, and return the receipts of the shards it holds."""
    shards = snapshot.manifest.parts
    if backend.exists():
        try:
            snapshot.space.require(read_backend_manifest(backend).space, backend.name)
        except NotAStore:
            if backend.count(BackendFilter(Filter())):  # an empty one is a push that was killed before its manifest
                raise
    backend.create(snapshot.space)
    receipts = backend.payloads(sorted(backend.counts().keys() | {shard.number for shard in shards}))
    headers = {shard.number: shard.header for shard in shards}
    shared = receipts.keys() & headers.keys()
    if any(receipts[n]["header"] != headers[n] for n in shared) or (receipts and shards and not shared):
        raise NotAStore(
            f"{backend.name} holds rows of another store, or of this store before `compact`; name another collection "
            f"or folder, or delete its contents with `clipfake store push --anew`"
        )
    manifest = BackendManifest(snapshot.space, snapshot.number, len(snapshot), content_of(shards))
    backend.write_note(MANIFEST_ID, manifest.to_dict())
    return receipts


def _copy(
    snapshot: Snapshot, backend: SearchBackend, receipts: dict[int, dict[str, Any]], report: PushReport
) -> Iterator[PushReport]:
    """Copy shard by shard and yield the report after each step. A shard whose receipt and count match is skipped."""
    counts, start = backend.counts(), 0
    shards = snapshot.manifest.parts
    for number in sorted((counts.keys() | receipts.keys()) - {shard.number for shard in shards}):
        backend.drop_shard(number)
        backend.drop([number])
        report = replace(report, dropped=report.dropped + counts.get(number, 0))
        yield report
    for shard in shards:
        live_rows = shard.rows - shard.deleted_rows
        receipt = {"header": shard.header, "deleted": shard.deleted_digest, "rows": live_rows}
        if receipts.get(shard.number) == receipt and counts.get(shard.number, 0) == live_rows:
            report = replace(report, kept=report.kept + live_rows)
        else:
            ids = _live_ids(snapshot, shard)
            present = backend.ids_of(shard.number) if counts.get(shard.number) else np.zeros(0, np.int64)
            stale = np.setdiff1d(present, ids)
            if len(stale):
                backend.drop(stale.tolist())
            missing = np.flatnonzero(~np.isin(ids, present))
            report = replace(report, kept=report.kept + live_rows - len(missing), dropped=report.dropped + len(stale))
            # written before the rows, so that a later push can tell whose they are if this one is killed
            backend.write_note(shard.number, {**receipt, "rows": UNFINISHED})
            blocks = snapshot.blocks(BATCH_ROWS, where=start + missing) if len(missing) else iter(())
            for first, block in zip(range(0, len(missing), BATCH_ROWS), blocks, strict=True):
                batch_ids = ids[missing[first : first + BATCH_ROWS]]
                backend.put(batch_ids, block.vectors, payloads_of(block, shard.number))
                report = replace(report, pushed=report.pushed + len(block))
                yield report
            backend.write_note(shard.number, receipt)
        start += live_rows
        yield report


def payloads_of(block: Block, shard: int) -> list[dict[str, Any]]:
    """Return what a back end stores of each row beside its vector."""
    rows = block.rows
    columns = (rows.keys, rows.labels, rows.sources, rows.generators, rows.categories)
    names = ("key", "label", "source", "generator", "category")
    return [
        {**dict(zip(names, values, strict=True)), "shard": shard}
        for values in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _live_ids(snapshot: Snapshot, shard: ShardRef) -> Ids:
    """Ids of a shard's live rows. Computed per shard, since the ids of a whole store take eight bytes a row."""
    rows = np.arange(shard.rows, dtype=np.int64)
    if shard.deleted:
        rows = np.delete(rows, read_tombstones(snapshot.folder, shard))
    return (shard.number << 32) + rows


def _require_counts(shards: Sequence[ShardRef], backend: SearchBackend) -> None:
    expected = {shard.number: shard.rows - shard.deleted_rows for shard in shards}
    counts = backend.counts()
    for number in sorted(expected.keys() | counts.keys()):
        if expected.get(number, 0) != counts.get(number, 0):
            raise Damaged(
                f"{backend.name} holds {counts.get(number, 0)} rows of shard {number} after the push instead of "
                f"{expected.get(number, 0)}; is another process writing to it? Run `clipfake store push` again"
            )
