"""Interrupted and failing runs: repeating the command completes the store."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from clipfake.errors import ImageError, Locked, SourceError, StoreError
from clipfake.indexer.decoding.image import decode
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.quarantine import read_quarantine
from clipfake.indexer.sources.folders import count
from clipfake.indexer.sources.image_ref import LocalFile
from indexed import contents, store_at, write_images
from PIL import Image as Pillow

# Starts the same run repeatedly, each time in a process that is killed after some seconds; the encoder is slow enough
# that runs are killed in the middle. Arguments: store, folder, seconds...
PROGRAM = """
import os, signal, sys, time
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.store.store import Store

class Slow(PlainEncoder):
    def encode(self, images):
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        return super().encode(images)

for seconds in map(float, sys.argv[3:]):
    child = os.fork()
    if child == 0:
        store = Store.create(sys.argv[1], PlainEncoder().space)
        index([sys.argv[2]], store, Slow(), IndexOptions(batch_size=4, threads=2, rows_per_shard=8))
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_run_can_be_resumed(tmp_path: Path, kills: int) -> None:
    folder = write_images(tmp_path / "p", 40 * kills)
    moments = np.random.default_rng(kills).uniform(0.02, 0.6, kills)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "s"), str(folder), *map(str, moments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "-9" in ended, "no run was killed in the middle"
    store = store_at(tmp_path / "s")
    stored = len(store.snapshot())
    report = index([folder], store, PlainEncoder())
    assert (report.known, report.added) == (stored, 40 * kills - stored)
    whole = store_at(tmp_path / "whole")
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert list((tmp_path / "s").rglob("*.tmp")) == []


def test_full_disk_keeps_stored_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = write_images(tmp_path / "p", 24), store_at(tmp_path / "s")
    written, create = 0, h5py.Group.create_dataset

    def full(self: h5py.Group, name: str, **options: object) -> object:
        nonlocal written
        written += name == "vectors"
        if written > 1:
            raise OSError(28, "No space left on device")
        return create(self, name, **options)

    options = IndexOptions(batch_size=4, rows_per_shard=8)
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", full)
        with pytest.raises(StoreError, match="No space left on device"):
            index([folder], store, PlainEncoder(), options)
    assert len(store.snapshot()) == 8
    assert list((tmp_path / "s").rglob("*.tmp")) == []
    assert index([folder], store, PlainEncoder(), options).added == 16


def test_second_writer_raises_locked(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 2), store_at(tmp_path / "s")
    with store.writer(), pytest.raises(Locked, match="is being written"):
        index([folder], store, PlainEncoder())


def test_quarantined_images_are_skipped_until_they_change(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 2), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    first = index([folder], store, PlainEncoder())
    again = index([folder], store, PlainEncoder())
    assert first.skipped == again.skipped
    assert (first.tried, again.tried) == (3, 0)
    [bad] = json.loads((tmp_path / "s/quarantine.json").read_text())["rows"]
    assert (bad["key"], bad["bytes"]) == ("p/bad.jpg", 8)
    assert "not an image" in bad["reason"]
    assert index([folder], store, PlainEncoder(), IndexOptions(retry_quarantined=True)).tried == 1
    (folder / "bad.jpg").write_bytes((folder / "0000.png").read_bytes())
    assert index([folder], store, PlainEncoder()).added == 1
    assert read_quarantine(tmp_path / "s") == {}


def test_damaged_quarantine_list_only_costs_a_retry(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 1), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    (tmp_path / "s/quarantine.json").write_text('{"format": "clip')
    assert index([folder], store, PlainEncoder()).tried == 2
    assert list(read_quarantine(tmp_path / "s")) == ["p/bad.jpg"]


def test_too_many_bad_images_end_the_run(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 9), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    assert index([folder], store, PlainEncoder(), IndexOptions(max_bad=0.1)).added == 9
    (folder / "worse.jpg").write_text("no image either")
    with pytest.raises(SourceError, match="1 of 1 images could not be read"):
        index([folder], store, PlainEncoder(), IndexOptions(max_bad=0.1))
    assert len(store.snapshot()) == 9


def test_sync_deletes_only_missing_rows_of_its_sources(tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "one", 4), write_images(tmp_path / "other", 2)
    store = store_at(tmp_path / "s")
    index([first, second], store, PlainEncoder())
    (first / "0001.png").unlink()
    (first / "0002.png").write_text("no image any more")
    (first / "0003.png").write_bytes((second / "0000.png").read_bytes())
    assert index([first], store, PlainEncoder()).dropped == 0
    report = index([first], store, PlainEncoder(), IndexOptions(sync=True))
    assert report.dropped == 2
    assert sorted(contents(store)) == ["one/0000.png", "one/0003.png", "other/0000.png", "other/0001.png"]
    assert index([first], store, PlainEncoder(), IndexOptions(sync=True)).dropped == 0


def test_sync_of_an_empty_folder_deletes_nothing(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 2), store_at(tmp_path / "s")
    index([folder], store, PlainEncoder())
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="no images"):  # an unmounted disk looks the same
        index([folder], store, PlainEncoder(), IndexOptions(sync=True))
    assert len(store.snapshot()) == 2


def test_touched_file_is_read_and_recognised(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "p", 3), store_at(tmp_path / "s")
    index([folder], store, PlainEncoder())
    os.utime(folder / "0001.png", ns=(1, 1))
    report = index([folder], store, PlainEncoder())
    assert (report.tried, report.known, report.added, report.replaced) == (1, 3, 0, 0)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change", [appended, lambda path: os.truncate(path, 9), lambda path: os.utime(path, ns=(1, 1))]
)
def test_file_changed_during_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    [path] = write_images(tmp_path / "p", 1).iterdir()
    fstat = os.fstat

    def changing(handle: int) -> os.stat_result:
        status = fstat(handle)
        change(path)  # another program goes on writing
        return status

    monkeypatch.setattr(os, "fstat", changing)
    with pytest.raises(ImageError, match="changed while it was read"):
        LocalFile(str(path)).read()


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = write_images(tmp_path / "p", 1).iterdir()
    whole, read = path.read_bytes(), os.read
    monkeypatch.setattr(os, "read", lambda handle, most: read(handle, min(most, 100)))
    assert LocalFile(str(path)).read() == (whole, path.stat().st_mtime_ns)


def test_special_files_are_reported_and_handles_closed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "p", 2)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "dead.jpg").symlink_to(folder / "nowhere")
    (folder / "folder.jpg").mkdir()
    handles = Path("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket.jpg"))  # the address of a socket must be short
        before = len(list(handles.iterdir())) if handles.exists() else 0
        report = index([folder], store_at(tmp_path / "s"), PlainEncoder())
        assert len(list(handles.iterdir())) == before if handles.exists() else True
    assert report.added == 2
    assert {key: reason.split(": ")[-1] for key, reason in report.skipped} == {
        "p/pipe.jpg": "it is a pipe, not a regular file",
        "p/dead.jpg": os.strerror(errno.ENOENT),
        "p/socket.jpg": "it is a socket, a device or a pipe, not a regular file",
    }


def test_decompression_bomb_raises_image_error(tmp_path: Path) -> None:
    bomb = Pillow.new("1", (20_000, 20_000))
    bomb.save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="pixels"):
        decode((tmp_path / "bomb.png").read_bytes())


@pytest.mark.slow
def test_a_million_files_in_one_folder(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "p", 8)
    try:
        for i in range(1_000_000):
            path = folder / f"{i:07d}.png"
            if i % 50_000 == 0:  # a file may have 65,000 names
                (first := path).touch()
            else:
                os.link(first, path)
        report = index([folder], store_at(tmp_path / "s"), PlainEncoder(), IndexOptions(limit=3, batch_size=2))
        assert report.listed == report.added + len(report.skipped) == 3  # drawn at random
        assert count([folder]) == 1_000_008
    finally:
        shutil.rmtree(folder)  # otherwise pytest keeps it
