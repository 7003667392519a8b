"""Worker pools store each row once, even if workers die. The driver is tested with a worker in this process."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from clipfake.errors import EncoderError, MissingExtra, SourceError, SpaceMismatch
from clipfake.indexer.distributed.process_pool import ProcessPool
from clipfake.indexer.distributed.ray_pool import RayPool
from clipfake.indexer.distributed.task import Task, TaskLost, TaskResult, task_size
from clipfake.indexer.distributed.worker import Worker
from clipfake.indexer.distributed.worker_pool import LOSSES, WorkerPool, index_with
from clipfake.indexer.encoder_spec import EncoderSpec
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.quarantine import read_quarantine
from clipfake.indexer.report import IndexReport
from clipfake.indexer.shard_inbox import commit
from clipfake.indexer.sources.image_ref import ImageRef
from clipfake.store.space import Space
from clipfake.store.store import Store
from indexed import contents, store_at, write_images

PLAIN = EncoderSpec("plain")


def waiting(store: Store) -> list[Path]:
    return list((store.folder / "incoming").glob("*"))


class LocalPool(WorkerPool):
    """Pool of one worker in this process, which dies at the tasks for which `dies` is true."""

    space = PlainEncoder().space
    workers = ["localhost process 1"]  # noqa: RUF012
    capacity = 2

    def __init__(self, folder: Path, dies: Callable[[Task], bool] = lambda task: False) -> None:
        self._worker, self._dies = Worker(PLAIN, folder, IndexOptions(threads=1)), dies
        self._queue: list[Task] = []
        self.requested: list[int] = []

    def submit(self, task: Task) -> None:
        assert len(self._queue) < self.capacity
        self.requested.append(len(task.images))
        self._queue.append(task)

    def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
        task = self._queue.pop(0)
        return [TaskLost(task.id) if self._dies(task) else self._worker.work(task)]

    def close(self) -> None:
        self._worker.close()


def test_task_id_depends_only_on_keys() -> None:
    images = [ImageRef("a/1", "/x"), ImageRef("a/2", "/y")]
    assert Task.of(images).id == Task.of([ImageRef("a/1", "/moved"), ImageRef("a/2", "/too")]).id
    assert Task.of(images).id != Task.of(images[:1]).id
    assert sum((half.images for half in Task.of(images * 3).halves()), ()) == tuple(images * 3)


def test_task_size_is_within_bounds() -> None:
    assert task_size(1, 1000.0, 8, 16_384) == 1
    assert task_size(10**9, 1.0, 1, 500) == 500
    assert task_size(0, 5.0, 1, 50) == 50


def test_repeated_task_is_stored_once(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 4), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    worker = Worker(PLAIN, store.folder, IndexOptions(threads=1))
    task = Task.of([ImageRef(f"p/{path.name}", str(path)) for path in sorted(folder.iterdir())])
    first, second = worker.work(task), worker.work(task)
    worker.close()
    assert first.shard == second.shard == f"{task.id}.h5"
    assert [ref.key for ref, _ in first.refused] == ["p/bad.jpg"]
    assert commit(store)
    assert len(contents(store)) == 4


def test_task_of_bad_images_has_no_shard(tmp_path: Path) -> None:
    worker = Worker(PLAIN, tmp_path, IndexOptions(threads=1))
    result = worker.work(Task.of([ImageRef("a", str(tmp_path / "nowhere.jpg"))]))
    worker.close()
    assert result.shard == ""
    assert len(result.refused) == 1


def test_encoder_error_is_raised_for_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PlainEncoder, images: object) -> None:
        raise EncoderError("the device is gone")

    monkeypatch.setattr(PlainEncoder, "encode", fail)
    folder = write_images(tmp_path / "p", 2)
    worker = Worker(PLAIN, tmp_path, IndexOptions(threads=1))
    for path in sorted(folder.iterdir()):
        with pytest.raises(EncoderError, match="the device is gone"):
            worker.work(Task.of([ImageRef(path.name, str(path))]))


def test_workers_read_one_image_of_a_new_category(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 6), store_at(tmp_path / "s")
    lines = [f"{i:04d}.png,real,face" for i in range(6)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,category", *lines]))
    index([folder], store, PlainEncoder())
    before = contents(store)
    corrected = [line.replace("real,face", "fake,cat") if i in (1, 2, 4) else line for i, line in enumerate(lines)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,category", *corrected]))
    with LocalPool(store.folder) as pool:
        report = index_with(pool, [folder], store)
    assert (report.relabelled, report.known, pool.requested) == (3, 3, [1])
    rows = store.snapshot().rows
    assert dict(zip(rows.keys.tolist(), rows.categories.tolist(), strict=True)) == {
        f"p/{i:04d}.png": "cat" if i in (1, 2, 4) else "face" for i in range(6)
    }
    assert contents(store) == before


def test_workers_store_the_same_rows_as_one_process(tmp_path: Path) -> None:
    folder, store, whole = write_images(tmp_path / "p", 40), store_at(tmp_path / "s"), store_at(tmp_path / "whole")
    (folder / "bad.jpg").write_text("no image")
    index([folder], store, PlainEncoder(), IndexOptions(limit=7))
    report = index_with(LocalPool(store.folder), [folder], store, IndexOptions(rows_per_shard=10))
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert (report.added, report.known, [key for key, _ in report.skipped]) == (33, 7, ["p/bad.jpg"])
    assert report.images_per_second_now > 0
    assert set(report.stages) == {"list", "decode", "encode", "write", "commit"}
    assert waiting(store) == []
    again = index_with(LocalPool(store.folder), [folder], store)
    assert (again.added, again.known, len(again.skipped)) == (0, 40, 1)
    assert again.to_dict()["encoder_busy"] == 0.0  # nothing was encoded


def test_image_that_kills_workers_is_isolated(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 40), store_at(tmp_path / "s")
    pool = LocalPool(store.folder, lambda task: any(ref.key == "p/0013.png" for ref in task.images))
    report = index_with(pool, [folder], store, IndexOptions(rows_per_shard=20))
    assert [key for key, _ in report.skipped] == ["p/0013.png"]
    assert "died" in read_quarantine(store.folder)["p/0013.png"].reason
    assert len(contents(store)) == report.added == 39


def test_single_worker_death_loses_nothing(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 30), store_at(tmp_path / "s")
    tried: set[str] = set()
    pool = LocalPool(store.folder, lambda task: task.id not in tried and not tried.add(task.id))  # type: ignore[func-returns-value]
    report = index_with(pool, [folder], store, IndexOptions(rows_per_shard=10))
    assert (report.added, report.skipped) == (30, [])
    assert pool.requested == [10, 10, 10, 10, 10, 10]


def test_repeated_worker_deaths_end_the_run(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", LOSSES), store_at(tmp_path / "s")
    with pytest.raises(SourceError, match="workers died"):
        index_with(LocalPool(store.folder, lambda task: True), [folder], store)


def test_images_before_a_listing_error_are_stored(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    store = store_at(tmp_path / "s")
    with pytest.raises(SourceError, match="no images"):
        index_with(LocalPool(store.folder), [write_images(tmp_path / "p", 20), tmp_path / "empty"], store)
    assert len(contents(store)) == 20


def test_ctrl_c_stores_tasks_in_progress(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 40), store_at(tmp_path / "s")

    class Stopped(LocalPool):
        calls = 0

        def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().collect(seconds)

    report = index_with(Stopped(store.folder), [folder], store, IndexOptions(rows_per_shard=10))
    assert (report.interrupted, report.added) == (True, 30)
    assert len(contents(store)) == 30
    assert index([folder], store, PlainEncoder()).added == 10


def test_part_with_workers_raises_source_error(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    with pytest.raises(SourceError, match="--part"):
        index_with(LocalPool(store.folder), [tmp_path], store, IndexOptions(part=(0, 2)))


def killing(killed: list[int]) -> Callable[[IndexReport], None]:
    """Progress callback that kills the first worker once 40 rows are stored."""

    def kill_one(report: IndexReport) -> None:
        if not killed and report.added >= 40:
            killed.append(int(report.workers[0].split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

    return kill_one


def test_killed_process_loses_no_row(tmp_path: Path) -> None:
    folder, store, whole = write_images(tmp_path / "p", 120), store_at(tmp_path / "s"), store_at(tmp_path / "whole")
    (folder / "bad.jpg").write_text("no image")
    killed: list[int] = []
    options = IndexOptions(rows_per_shard=10, threads=2)
    with ProcessPool(PLAIN, store.folder, options, 2) as pool:
        report = index_with(pool, [folder], store, options, killing(killed))
    assert killed
    assert (report.added, report.known, [key for key, _ in report.skipped]) == (120, 0, ["p/bad.jpg"])
    assert len(set(report.workers)) == 2
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert waiting(store) == []


# A driver that is killed once it has stored a number of rows. Arguments: store, folder, rows.
DRIVER = """
import os, signal, sys
from clipfake.indexer.distributed.worker_pool import index_with
from clipfake.indexer.index import IndexOptions
from clipfake.indexer.distributed.process_pool import ProcessPool
from clipfake.indexer.encoder_spec import EncoderSpec
from clipfake.store.store import Store

def kill(report):
    if report.added >= int(sys.argv[3]):
        print(*(worker.split()[-1] for worker in report.workers), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    options = IndexOptions(rows_per_shard=10, threads=2)
    store = Store.open(sys.argv[1])
    with ProcessPool(EncoderSpec("plain"), store.folder, options) as pool:
        index_with(pool, [sys.argv[2]], store, options, kill)
"""


@pytest.mark.parametrize("kills", [[40], pytest.param([10, 20, 30, 10], marks=pytest.mark.slow)])
def test_killed_driver_ends_workers_and_can_be_resumed(tmp_path: Path, kills: list[int]) -> None:
    folder, store = write_images(tmp_path / "p", 120 * len(kills)), store_at(tmp_path / "s")
    (tmp_path / "driver.py").write_text(DRIVER)
    for rows in kills:
        command = [sys.executable, str(tmp_path / "driver.py"), str(store.folder), str(folder), str(rows)]
        output = subprocess.run(command, capture_output=True, text=True)
        assert output.returncode == -signal.SIGKILL, output.stderr
        for worker in map(int, output.stdout.split()):
            assert gone(worker), f"process {worker} outlived its driver"
        assert len(contents(store)) >= rows
    assert index([folder], store, PlainEncoder()).known >= sum(kills)
    whole = store_at(tmp_path / "whole")
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert waiting(store) == []


# A driver that is interrupted while it records a result. Arguments: store, folder.
INTERRUPTED = """
import os, signal, sys
from clipfake.indexer.distributed.worker_pool import index_with
from clipfake.indexer.index import IndexOptions
from clipfake.indexer.distributed.process_pool import ProcessPool
from clipfake.indexer.encoder_spec import EncoderSpec
from clipfake.store.store import Store

class PairingPool(ProcessPool):
    def collect(self, seconds):  # two results at a time, if two are expected
        results = []
        while len(results) < 2 and (not results or any(worker.task_ids for worker in self._workers)):
            results += super().collect(seconds)
        return results

def interrupt(report):
    if report.added and not interrupted:
        interrupted.append(True)
        os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    interrupted = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may have ignored it
    options = IndexOptions(rows_per_shard=10, threads=2)
    store = Store.open(sys.argv[1])
    with PairingPool(EncoderSpec("plain"), store.folder, options) as pool:
        report = index_with(pool, [sys.argv[2]], store, options, interrupt)
    print(report.interrupted, report.added)
"""


def test_ctrl_c_while_recording_loses_no_result(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 120), store_at(tmp_path / "s")
    (tmp_path / "driver.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "driver.py"), str(store.folder), str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    interrupted, added = output[0], int(output[1])
    assert interrupted == "True"
    assert 10 <= added == len(contents(store)) < 120
    assert waiting(store) == []
    assert index([folder], store, PlainEncoder()).added == 120 - added


def gone(process: int) -> bool:
    """True if a process ends within half a minute."""
    for _ in range(300):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        threading.Event().wait(0.1)
    return False


def test_worker_start_error_is_raised_by_the_pool(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="cannot be loaded"):
        ProcessPool(EncoderSpec(str(tmp_path)), tmp_path, IndexOptions(), 1)


def test_pool_with_another_encoder_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", Space("other", "1" * 64, 192))
    with pytest.raises(SpaceMismatch):
        index_with(LocalPool(store.folder), [write_images(tmp_path / "p", 1)], store)


def test_missing_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"clipfake\[ray\]"):
        RayPool(PLAIN, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_killed_ray_worker_loses_no_row(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    folder, store = write_images(tmp_path / "p", 300), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    killed: list[int] = []
    options = IndexOptions(rows_per_shard=10, threads=1)
    with RayPool(PLAIN, store.folder, options, count=2) as pool:
        report = index_with(pool, [folder], store, options, killing(killed))
    assert killed
    assert [f"process {killed[0]} was lost" in summary for summary in report.lost] == [True]
    assert (report.added, report.known, [key for key, _ in report.skipped]) == (300, 0, ["p/bad.jpg"])
    whole = store_at(tmp_path / "whole")
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert waiting(store) == []
