"""The concurrent stages lose no image, even if one of them is slow, fails or runs out of memory."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError, SourceError, StoreError
from clipfake.indexer.channel import Channel, ChannelStopped
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.decoding.reader import ImageReader
from clipfake.indexer.encoders.base import PlainEncoder, Replicas
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.pipeline import AHEAD, UNWRITTEN, EncodedBatch, Pipeline, batched
from clipfake.indexer.sources.image_ref import ImageRef
from clipfake.indexer.stage import Stage, limit_of
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store
from clipfake.store.writer import Writer
from PIL import Image as Pillow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images"
    path.mkdir()
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (6, 5 + i % 3, 3), np.uint8)
        Pillow.fromarray(noise).resize((20, 24)).save(path / f"{i:02d}.png")
    return path


def store_at(folder: Path) -> Store:
    return Store.create(folder / "store", PlainEncoder().space)


def keys_of(store: Store) -> list[str]:
    return sorted(store.snapshot().rows.keys.tolist())


class SmallMemory(PlainEncoder):
    """Encoder on a device with memory for `capacity` images."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def encode(self, images: Sequence[Pixels]):  # type: ignore[no-untyped-def]
        if len(images) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(images)


def test_out_of_memory_halves_batches_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    report = index([folder], store, SmallMemory(3), IndexOptions(batch_size=16))
    assert (report.added, report.batch_size) == (20, 2)
    plain = store_at(tmp_path / "plain")
    index([folder], plain, PlainEncoder())
    assert np.array_equal(store.snapshot().vectors(), plain.snapshot().vectors())


def test_no_memory_for_one_image_raises_encoder_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="even one image"):
        index([folder], store_at(tmp_path), SmallMemory(0), IndexOptions(batch_size=4))


def test_several_devices_share_the_work(folder: Path, tmp_path: Path) -> None:
    class Counting(PlainEncoder):
        seen = 0

        def encode(self, images: Sequence[Pixels]):  # type: ignore[no-untyped-def]
            self.seen += len(images)
            return super().encode(images)

    devices = [Counting(), Counting()]
    store = store_at(tmp_path)
    report = index([folder], store, Replicas(devices), IndexOptions(batch_size=2))
    assert len(keys_of(store)) == report.added == sum(device.seen for device in devices) == 20
    assert report.to_dict()["stages"]["encode"]["workers"] == 2


def test_encoder_is_replicated_on_each_device(tmp_path: Path) -> None:
    encoder = load_encoder(str(build_standin(tmp_path)), device="cpu,cpu")
    assert isinstance(encoder, Replicas)
    first, second = encoder.replicas
    grey = [np.full((30, 30, 3), 90, np.uint8)]
    assert first is not second
    assert np.allclose(first.encode(grey), second.encode(grey), atol=1e-6)


INTERRUPTED = """
import os, signal, sys, time
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.store.store import Store

class Stopping(PlainEncoder):
    def encode(self, images):
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)  # the main thread must receive it before the work is done, even on a busy machine
        return super().encode(images)

stopped = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may have ignored it
report = index([sys.argv[1]], Store.open(sys.argv[2]), Stopping(), IndexOptions(batch_size=4))
print(report.interrupted, report.added)
"""


def test_ctrl_c_finishes_the_batch_in_flight(folder: Path, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    # in another process: only the main thread receives the signal, and a test may run in another thread
    command = [sys.executable, "-c", INTERRUPTED, str(folder), str(store.folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    interrupted, added = output[0], int(output[1])
    assert interrupted == "True"
    assert len(store.snapshot()) == added
    assert 4 <= added < 20
    assert index([folder], store, PlainEncoder()).added == 20 - added


def test_listing_does_not_run_far_ahead(folder: Path) -> None:
    listed = encoded = 0
    most = 0

    def refs():  # type: ignore[no-untyped-def]
        nonlocal listed
        for i in range(400):
            listed += 1
            yield ImageRef(str(i), str(folder / f"{i % 20:02d}.png"))

    def write(batch: EncodedBatch) -> None:
        nonlocal encoded, most
        most = max(most, listed - encoded)
        encoded += len(batch.images)

    Pipeline(PlainEncoder(), ImageReader(), 4, 2).run(batched(refs(), 4), write)  # type: ignore[no-untyped-call]
    assert encoded == 400
    assert most <= 4 * (AHEAD + UNWRITTEN + 4)


def test_images_before_a_listing_error_are_stored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    store = store_at(tmp_path)
    with pytest.raises(SourceError, match="no images"):
        index([folder, tmp_path / "empty"], store, PlainEncoder())
    assert len(store.snapshot()) == 20


def test_failing_writer_ends_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Writer, block: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(Writer, "append", refuse)
    with pytest.raises(StoreError, match="disk full"):
        index([folder], store_at(tmp_path), PlainEncoder(), IndexOptions(batch_size=2))


def test_report_names_the_limiting_stage(folder: Path, tmp_path: Path) -> None:
    class Slow(PlainEncoder):
        def encode(self, images: Sequence[Pixels]):  # type: ignore[no-untyped-def]
            until = time.perf_counter() + 0.05
            while time.perf_counter() < until:
                pass
            return super().encode(images)

    report = index([folder], store_at(tmp_path), Slow(), IndexOptions(batch_size=4)).to_dict()
    assert report["limit"] == "encode"
    assert set(report["stages"]) == {"list", "decode", "encode", "write"}
    assert all(0 <= stage["busy"] <= 1 for stage in report["stages"].values())


def test_stage_with_idle_workers_is_not_the_limit() -> None:
    assert limit_of({"decode": Stage(4, 20.0), "encode": Stage(1, 9.0)}, 10.0) == "encode"


def test_shrinking_early_keeps_the_vector(tmp_path: Path) -> None:
    encoder = load_encoder(str(build_standin(tmp_path)))
    small = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    pixels = np.asarray(Pillow.fromarray(small).resize((1000, 650), Pillow.Resampling.BICUBIC))
    shrunk = encoder.shrink(pixels)
    assert shrunk.shape == (224, 224, 3)
    assert (encoder.encode([pixels]) * encoder.encode([shrunk])).sum() > 1 - 1e-6


def test_put_into_stopped_channel_raises() -> None:
    channel = Channel[int](1)
    channel.put(1)
    channel.stop()
    with pytest.raises(ChannelStopped):
        channel.put(2)
    assert list(channel) == []


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_invalid_vectors_are_refused_individually(folder: Path, tmp_path: Path, value: float) -> None:
    class Odd(PlainEncoder):
        def encode(self, images: Sequence[Pixels]):  # type: ignore[no-untyped-def]
            vectors = super().encode(images)
            vectors[1] = value
            return vectors

    report = index([folder], store_at(tmp_path), Odd(), IndexOptions(batch_size=10))
    assert report.added == 18
    assert [(key, "zero or not finite" in reason) for key, reason in report.skipped] == [
        ("images/01.png", True),
        ("images/11.png", True),
    ]
