"""Each command that changes something, failed and killed at its system calls.

With CLIPFAKE_EVERY_CALL in the environment, at every one of them; otherwise at a sample.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from clipfake.detector.calibration import Calibration
from clipfake.detector.head import Head
from clipfake.detector.training.fit import FitReport, fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.detector.training.triplet import TripletOptions
from clipfake.errors import ClipfakeError, StoreError
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index
from clipfake.indexer.sources.folders import expand
from clipfake.indexer.sources.named_source import NamedSource
from clipfake.store.exchange.export_rows import export_rows
from clipfake.store.exchange.import_rows import import_rows
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors, vector_names
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from indexed import write_images
from system_faults import KILL, TRACEBACK, available, calls_in, run

EVERY = bool(os.environ.get("CLIPFAKE_EVERY_CALL"))
TOY = Space("toy", "0" * 64, dim=8)
SAMPLE = int(os.environ.get("CLIPFAKE_FAULTS", 6))  # faults of a command, otherwise


@dataclass(frozen=True)
class Command:
    """A command in a folder with `store` and what else it reads."""

    change: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda work: None
    damaged: bool = False  # the store is, before


def add(work: Path, source: str = "new") -> None:
    sources = [NamedSource(expanded, source, 1) for expanded in expand([str(work / source)])]
    index(sources, Store(work / "store"), PlainEncoder())


def index_twice(work: Path) -> None:
    add(work, "new")
    add(work, "newer")


def remove(work: Path) -> None:
    Store(work / "store").delete(Filter(source="old"))


def delete(work: Path) -> None:
    Store(work / "store").delete(Filter(key="first/0002.png"))


def undo(work: Path) -> None:
    Store(work / "store").undo(1)


def shrink(work: Path) -> None:
    compact(Store(work / "store"), grace=timedelta(0))


def mend(work: Path) -> None:
    repair(work / "store")


def flip(work: Path) -> None:
    delete(work)
    [path] = (work / "store/deleted").glob("*.u4")
    path.write_bytes(b"\xff" * path.stat().st_size)


def imported(work: Path) -> None:
    import_rows(work / "imported", work / "store")


def exportable(work: Path) -> None:
    copy = shutil.copytree(work / "store", work / "copy")
    Store(copy).delete(Filter(source="old"))
    export_rows(Store(work / "store").snapshot(), work / "imported", "numpy")
    shutil.rmtree(work / "store")
    copy.rename(work / "store")


def exported(work: Path) -> None:
    export_rows(Store(work / "store").snapshot(), work / "out")


def named(work: Path) -> None:
    with named_vectors_writer(work / "store", "named", PlainEncoder().space) as writer:
        missing = np.flatnonzero(writer.column.missing(writer.snapshot))
        writer.put(missing, writer.snapshot.vectors()[missing])


def relabelled(work: Path) -> None:
    with Store(work / "store").writer() as writer:
        rows = writer.find([f"first/{number:04d}.png" for number in range(3)])
        labels = [row._replace(category="other") for row in writer.snapshot.row_labels(rows)]
        writer.relabel(writer.snapshot.ids[rows], labels)


def indexed(work: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive the fork
    faiss.omp_set_num_threads(1)
    build_index(Store(work / "store"), "plain", anew=True)


@lru_cache(maxsize=2)
def fitted(seed: int) -> FitReport:
    """A trained and calibrated detector of other rows; where it is saved does not matter to it."""
    labels = np.arange(240) % 2
    vectors = np.random.default_rng(0).standard_normal((240, 8)) + 2 * labels[:, None]
    block = Block(TOY, Rows.make([f"s/{i}" for i in range(240)], labels, sources=["s"] * 240), vectors)
    with TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store", TOY)
        with store.writer() as writer:
            writer.append(block)
        return fit_detector(
            store,
            options=TrainOptions(classifier="triplet-svm", seed=seed, triplet=TripletOptions(epochs=1), baselines=()),
        )


def trained(work: Path) -> None:
    replace(fitted(0), store=work / "store").save()


def trained_before(work: Path) -> None:
    replace(fitted(1), store=work / "store").save()
    fitted(0)


COMMANDS = {
    "index": Command(index_twice),
    "bank add": Command(add),
    "bank remove": Command(remove),
    "store delete": Command(delete),
    "store undo": Command(undo, delete),
    "store compact": Command(shrink, delete),
    "store repair": Command(mend, flip, damaged=True),
    "store import": Command(imported, exportable),
    "store export": Command(exported),
    "store add-vectors": Command(named),
    "store relabel": Command(relabelled, named),
    "store index": Command(indexed),
    "train": Command(trained, trained_before),
}


def state(work: Path) -> Any:
    """What the command changes, as a user sees it."""
    snapshot = Store(work / "store").snapshot()
    names = vector_names(work / "store")
    named = [open_named_vectors(work / "store", name).vectors(snapshot, np.arange(len(snapshot))) for name in names]
    keys, categories = snapshot.column("keys").tolist(), snapshot.column("categories").tolist()
    rows = zip(keys, categories, snapshot.vectors(), *named, strict=True)
    values = {key: [category, *(np.nan_to_num(a).tolist() for a in arrays)] for key, category, *arrays in rows}
    assert len(values) == len(keys), "a key occurs twice"
    out = work / "out"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*")) if out.exists() else None
    heads = work / "store/heads/default"
    head = Head.load(heads).digest if heads.exists() else None
    if head:
        Calibration.load(heads, head)
    return {"rows": values, "out": files, "head": head}


def parts_of(before: Any, after: Any, found: Any) -> bool:
    """True if a state has every row of before that is also after, and of all others some, as before or as after."""
    for key in {*before["rows"], *after["rows"], *found["rows"]}:
        possible = [before["rows"].get(key), after["rows"].get(key)]
        row = found["rows"].get(key)
        # named vectors are added shard by shard
        if row not in possible and row is not None and row[:2] not in [p and p[:2] for p in possible]:
            return False
        if row is None and None not in possible:
            return False
    return all(found[name] in (before[name], after[name]) for name in ("out", "head"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("start")
    for source, count in (("old", 3), ("first", 4), ("new", 5), ("newer", 6)):
        write_images(work / source, count)
    Store.create(work / "store", PlainEncoder().space)
    add(work, "first")
    add(work, "old")
    return work


@pytest.fixture(scope="module", autouse=True)
def strace() -> None:
    if not available():
        pytest.skip("needs strace, and the right to attach it to a process")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "bank remove" else pytest.mark.slow) for name in COMMANDS]
)
def test_failed_or_killed_command_is_told_truly_and_can_be_repeated(start: Path, tmp_path: Path, name: str) -> None:
    command, work = COMMANDS[name], tmp_path / "work"
    prepared = shutil.copytree(start, tmp_path / "prepared")
    command.prepare(prepared)
    shutil.copytree(prepared, work)
    before = None if command.damaged else state(work)
    assert run(lambda: command.change(work), work).status == 0
    after, calls = state(work), calls_in(work)
    assert len(calls) > 5
    faults = [(call, fault) for call in calls for fault in call.faults()]
    chosen = faults if EVERY else [faults[i] for i in np.linspace(0, len(faults) - 1, SAMPLE).astype(int)]
    failures, outcomes = [], Counter[str]()
    for call, fault in chosen:
        shutil.rmtree(work)
        shutil.copytree(prepared, work)
        outcome = run(lambda: command.change(work), work, f"{call.name}:{fault}:when={call.ordinal}")
        try:
            check(command, work, outcome, before, after, killed=fault == KILL)
        except (AssertionError, ClipfakeError) as e:
            failures.append(f"{call.text[:200]} {fault}: status {outcome.status}, {outcome.output[-600:]} {e!r:.300}")
        outcomes["killed" if outcome.status < 0 else "refused" if outcome.status else "done"] += 1
    if report := os.environ.get("CLIPFAKE_FAULT_REPORT"):
        with Path(report).open("a") as file:
            counts = {"command": name, "calls": len(calls), "faults": len(chosen), **outcomes, "failed": len(failures)}
            file.write(json.dumps(counts) + "\n" + "".join(f"  {line}\n" for line in failures))
    assert not failures, "\n".join(failures[:5])


def check(command: Command, work: Path, outcome: Any, before: Any, after: Any, *, killed: bool) -> None:
    assert outcome.status != TRACEBACK
    assert outcome.status in ((0, 1, -9) if killed else (0, 1))  # the kill may come in another thread, or never
    if not command.damaged:
        found = state(work)
        assert verify(work / "store").problems == ()
        assert parts_of(before, after, found), "rows were lost or mixed"
        if outcome.status == 0:
            assert found == after, "nothing was done"
        elif re_unchanged(outcome.output):
            assert found["rows"].keys() in (before["rows"].keys(), {*before["rows"], *found["rows"]}), "untrue message"
    elif outcome.status == 0:
        assert state(work) == after
    try:
        command.change(work)  # the same command again
    except StoreError as e:
        assert "already exists and is not empty" in str(e)  # the export is whole
    assert state(work) == after, "the second run ends otherwise"
    assert verify(work / "store").problems == ()
    assert not [path for path in work.iterdir() if path.suffix == ".tmp" and not killed]


def re_unchanged(output: str) -> bool:
    return "nothing stored before was changed" in output
