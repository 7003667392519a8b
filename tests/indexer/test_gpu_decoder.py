"""Large JPEGs decoded on a GPU: the store is the same whichever decoder is used, is busy, fails or disagrees.

The real library is tested with its CPU decoder, and on a GPU if there is one.
"""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.cli import main
from clipfake.errors import EncoderError, ImageError, MissingExtra
from clipfake.indexer import index as indexing
from clipfake.indexer.decoding import nvimagecodec, reader
from clipfake.indexer.decoding.gpu_decoder import (
    BATCH_PIXELS,
    MAX_TOLERANCE,
    MEAN_TOLERANCE,
    VERIFIED_IMAGES,
    DecodeFunction,
    GpuDecoder,
    ReducedImage,
    difference,
    large_and_plain,
    probe_jpegs,
)
from clipfake.indexer.decoding.image import decode, jpeg_header
from clipfake.indexer.decoding.nvimagecodec import NAME, NvImageCodec, box_mean, decode_on_cpu, gpu_decoder_for
from clipfake.indexer.distributed.task import Task, TaskLost, TaskResult
from clipfake.indexer.distributed.worker import Worker
from clipfake.indexer.distributed.worker_pool import WorkerPool, index_with
from clipfake.indexer.encoder_spec import EncoderSpec
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.preprocess import Preprocess
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.report import IndexReport
from clipfake.show.progress_display import describe_decoders
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store
from PIL import Image as Pillow

needs_library = pytest.mark.skipif(not nvimagecodec.installed(), reason="the extra `nvidia` is not installed")
CLIP = Preprocess(0, 0, 224, 224, "bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
cpu_decode = partial(decode_on_cpu, CLIP, True)


def draw_image(width: int, height: int, seed: int = 0) -> Pillow.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return Pillow.fromarray(noise).resize((width, height), Pillow.Resampling.BICUBIC)


def saved(image: Pillow.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def of_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header is changed to another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


def turned() -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return exif


LARGE = saved(draw_image(700, 500))
KINDS = {  # content of a file, and whether the GPU decoder accepts it
    "large": (LARGE, True),
    "progressive": (saved(draw_image(600, 700, 1), progressive=True), True),
    "grey": (saved(draw_image(640, 480, 2).convert("L")), True),
    "full chroma": (saved(draw_image(900, 1700, 3), subsampling=0), True),
    "small": (saved(draw_image(300, 300, 4)), False),
    "tiny": (saved(draw_image(3, 2, 5)), False),
    "long": (saved(draw_image(3000, 300, 6)), False),
    "turned": (saved(draw_image(700, 500, 7), exif=turned()), False),
    "cmyk": (saved(draw_image(700, 500, 8).convert("CMYK")), False),
    "png": (saved(draw_image(700, 500, 9), "PNG"), False),
    "cut off": (LARGE[:-500], False),
    "end lost": (LARGE[:-2], False),
    "not an image": (b"no image", False),
    "empty": (b"", False),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TorchEncoder:
    loaded = load_encoder(str(build_standin(tmp_path_factory.mktemp("encoder"))), device="cpu")
    assert isinstance(loaded, TorchEncoder)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for name, (content, _) in KINDS.items():
        (path / f"{name}.jpg").write_bytes(content)
    return path


def shifted(levels: int) -> DecodeFunction:
    """A decoder whose pixels are darker than the CPU's by some levels."""

    def darker(content: bytes) -> ReducedImage:
        small = cpu_decode(content)
        return replace(small, pixels=np.maximum(small.pixels, levels) - np.uint8(levels))

    return lambda contents: [darker(content) for content in contents]


def gpu_decoder_of(*factories: Callable[[], DecodeFunction], must_be_faster: bool = False) -> GpuDecoder:
    return GpuDecoder("double", factories, cpu_decode, must_be_faster=must_be_faster)


def indexed(
    folder: Path, to: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch, with_: GpuDecoder | None, threads: int = 2
) -> tuple[Store, IndexReport]:
    monkeypatch.setattr(indexing, "gpu_decoder_for", lambda *_, **__: with_)
    store = Store.create(to, encoder.space)
    return store, index([folder], store, encoder, IndexOptions(threads=threads, batch_size=8))


def columns(store: Store) -> dict[str, list[Any]]:
    """All columns of a store except the vectors."""
    snapshot = store.snapshot()
    names = ("keys", "digests", "bytes", "widths", "heights", "formats", "qualities", "mtimes")
    rows = {name: getattr(snapshot.rows, name).tolist() for name in names}
    return rows | {"thumbnails": [snapshot.thumbnail(i) for i in range(len(snapshot))]}


@pytest.mark.parametrize("name", KINDS)
def test_accepts_only_large_plain_complete_jpegs(name: str) -> None:
    content, accepted = KINDS[name]
    assert (large_and_plain(content) is not None) == accepted


def test_images_above_the_batch_limit_go_to_the_cpu() -> None:
    assert large_and_plain(of_size(LARGE, 5000, 5000)) is not None
    assert BATCH_PIXELS < 6000 * 6000 and large_and_plain(of_size(LARGE, 6000, 6000)) is None


def test_images_that_may_be_rgb_go_to_the_cpu() -> None:
    at = LARGE.index(b"\xff\xc0") + 10
    named = bytearray(LARGE)
    named[at : at + 9 : 3] = b"RGB"
    header = jpeg_header(bytes(named))
    assert header is not None and header.components == b"RGB"
    assert large_and_plain(bytes(named)) is None


def test_agreeing_decoder_is_used_and_store_is_the_same(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = partial(decode_on_cpu, encoder.preprocess, True)
    double = GpuDecoder(
        "double", [lambda: lambda contents: [reference(one) for one in contents]], reference, must_be_faster=False
    )
    plain, before = indexed(folder, tmp_path / "plain", encoder, monkeypatch, None)
    store, report = indexed(folder, tmp_path / "s", encoder, monkeypatch, double, threads=1)
    assert columns(store) == columns(plain)
    assert np.array_equal(store.snapshot().vectors(), plain.snapshot().vectors())
    assert sorted(report.skipped) == sorted(before.skipped) and len(report.skipped) == 4
    large = sum(accepted for _, accepted in KINDS.values())
    assert report.decoded_by == {"cpu": 10 - large, "double": large}
    assert report.to_dict()["decoded_by"] == report.decoded_by


def spotted(content: bytes) -> ReducedImage:
    """Decode with one wrong pixel."""
    small = cpu_decode(content)
    pixels = small.pixels.copy()
    pixels[3, 5] ^= 16
    return replace(small, pixels=pixels)


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (shifted(1), "1.00 levels on average and 1 at most"),
        (lambda contents: [spotted(content) for content in contents], "0.00 levels on average and 16 at most"),
        (
            lambda contents: [replace(cpu_decode(one), pixels=cpu_decode(one).pixels[:9]) for one in contents],
            "255 at most",
        ),
        (lambda contents: [None] * len(contents), "it decodes no JPEG on this machine"),
    ],
    ids=["darker", "one pixel", "another size", "nothing"],
)
def test_disagreeing_decoder_is_not_used_and_reported(decode: DecodeFunction, text: str) -> None:
    double = gpu_decoder_of(lambda: decode)
    assert double.accepts(LARGE) is not None
    assert double.decode([LARGE]) == [None]
    assert double.unused.startswith("double is not used: it") and text in double.unused
    assert ("allowed" in double.unused) == (f"{MEAN_TOLERANCE} and {MAX_TOLERANCE}" in double.unused)
    assert double.accepts(LARGE) is None


def test_next_factory_is_tried_after_disagreement() -> None:
    tried: list[str] = []

    def factory(name: str, levels: int) -> Callable[[], DecodeFunction]:
        return lambda: tried.append(name) or shifted(levels)  # type: ignore[func-returns-value]

    double = gpu_decoder_of(factory("engine", 2), factory("cuda", 0), factory("never", 0))
    [image] = double.decode([LARGE]) or [None]
    assert image is not None and difference(image, cpu_decode(LARGE)).maximum == 0
    assert (tried, double.unused) == (["engine", "cuda"], "")


def test_decoder_is_verified_on_real_images_before_use(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = partial(decode_on_cpu, encoder.preprocess, True)

    def off_on_real_ones(contents: Sequence[bytes]) -> Sequence[ReducedImage | None]:
        small = [reference(content) for content in contents]
        if tuple(contents) == probe_jpegs():
            return small
        return [replace(one, pixels=one.pixels ^ np.uint8(2)) for one in small]

    double = GpuDecoder("double", [lambda: off_on_real_ones], reference, must_be_faster=False)
    plain, _ = indexed(folder, tmp_path / "plain", encoder, monkeypatch, None)
    store, report = indexed(folder, tmp_path / "s", encoder, monkeypatch, double)
    assert np.array_equal(store.snapshot().vectors(), plain.snapshot().vectors())
    assert report.decoded_by == {"cpu": 10, "double": 0}
    assert list(describe_decoders(report.to_dict())) == ["decoded 10 by cpu", double.unused]
    assert "2.00 levels on average" in report.decoder_unused


@pytest.mark.parametrize("stage", ["made", "tried", "used"])
def test_failing_decoder_is_disabled_and_loses_no_image(
    stage: str, folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, calls = partial(decode_on_cpu, encoder.preprocess, True), []

    def fails(contents: Sequence[bytes]) -> Sequence[ReducedImage | None]:
        calls.append(len(contents))
        if stage == "tried" or len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return [reference(content) for content in contents]

    def factory() -> DecodeFunction:
        if stage == "made":
            raise RuntimeError("no CUDA-capable device is detected")
        return fails

    double = GpuDecoder("double", [factory], reference, must_be_faster=False)
    store, report = indexed(folder, tmp_path / "s", encoder, monkeypatch, double)
    assert report.decoded_by == {"cpu": 10, "double": 0} and len(store.snapshot()) == 10
    assert report.decoder_unused.startswith("double is not used: it failed (") and "\n" not in report.decoder_unused
    assert len(calls) == {"made": 0, "tried": 1, "used": 2}[stage]


def test_images_left_by_gpu_are_decoded_on_cpu(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = partial(decode_on_cpu, encoder.preprocess, True)

    def not_grey(contents: Sequence[bytes]) -> Sequence[ReducedImage | None]:
        return [None if one == KINDS["grey"][0] else reference(one) for one in contents]

    double = GpuDecoder("double", [lambda: not_grey], reference, must_be_faster=False)
    store, report = indexed(folder, tmp_path / "s", encoder, monkeypatch, double, threads=1)
    assert report.decoded_by == {"cpu": 7, "double": 3}
    assert len(store.snapshot()) == 10 and report.decoder_unused == ""


def test_image_refused_by_cpu_is_refused_during_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    double = gpu_decoder_of(lambda: lambda contents: [cpu_decode(LARGE)] * len(contents))

    def refuses(content: bytes) -> ReducedImage:
        if content == b"bad":
            raise ImageError("damaged")
        return cpu_decode(LARGE)

    monkeypatch.setattr(double, "_cpu_decode", refuses)
    images = double.decode([LARGE, b"bad"]) or []
    assert [image is None for image in images] == [False, True]
    assert double.unused == ""


def test_thread_decodes_on_cpu_while_decoder_is_busy(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder returns only once another thread has decoded a large image; without sharing, it never does."""
    reference, shared = partial(decode_on_cpu, encoder.preprocess, True), threading.Event()
    for i in range(12):
        (folder / f"more {i}.jpg").write_bytes(saved(draw_image(600, 500, 20 + i)))

    def decoding(content: bytes) -> Any:
        image = decode(content)
        if large_and_plain(content):
            shared.set()
        return image

    def waits(contents: Sequence[bytes]) -> Sequence[ReducedImage | None]:
        if tuple(contents) != probe_jpegs():
            assert shared.wait(60), "no other thread shared the work"
        return [reference(content) for content in contents]

    monkeypatch.setattr(reader, "decode", decoding)
    double = GpuDecoder("double", [lambda: waits], reference, must_be_faster=False)
    store, report = indexed(folder, tmp_path / "s", encoder, monkeypatch, double, threads=3)
    assert report.decoder_unused == "" and report.decoded_by["double"] > 0 and report.decoded_by["cpu"] > 6
    assert sum(report.decoded_by.values()) == len(store.snapshot()) == 22


def test_batches_stay_below_the_pixel_limit(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, pixels = partial(decode_on_cpu, encoder.preprocess, True), list[list[int]]()

    def counts(contents: Sequence[bytes]) -> Sequence[ReducedImage | None]:
        headers = [jpeg_header(content) for content in contents]
        pixels.append([header.pixels for header in headers if header])
        return [reference(content) for content in contents]

    monkeypatch.setattr(reader, "BATCH_PIXELS", 800_000)
    double = GpuDecoder("double", [lambda: counts], reference, must_be_faster=False)
    indexed(folder, tmp_path / "s", encoder, monkeypatch, double, threads=1)
    batches = pixels[1:]  # after the generated images
    assert sum(map(len, batches)) == 4 and all(sum(batch) <= 800_000 or len(batch) == 1 for batch in batches)
    assert any(len(batch) > 1 for batch in batches)


@pytest.mark.parametrize(("must_be_faster", "gpu_seconds"), [(True, 2.0), (True, 0.1), (False, 2.0)])
def test_slow_decoder_is_dropped_if_it_must_be_faster(
    must_be_faster: bool, gpu_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, small = [0.0], cpu_decode(LARGE)

    def takes(seconds: float, content: bytes) -> ReducedImage:
        clock[0] += seconds
        return small if content == LARGE else cpu_decode(content)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    gpu_decode = lambda contents: [takes(gpu_seconds, content) for content in contents]  # noqa: E731
    double = GpuDecoder("double", [lambda: gpu_decode], partial(takes, 1.0), must_be_faster=must_be_faster)
    for _ in range(VERIFIED_IMAGES // 8):
        double.decode([LARGE] * 8)
    dropped = must_be_faster and gpu_seconds > 1
    assert double.unused == ("double is not used: it takes 2000.0 ms per image, a CPU core 1000.0" if dropped else "")


@pytest.mark.parametrize("size", [(640, 480), (1001, 777), (777, 1001), (129, 2000), (600, 3), (256, 128), (60, 90)])
def test_box_mean_equals_pillow_reduce(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for factor in (1, 2, 3, 5, 8, 17):
        expected = np.asarray(Pillow.fromarray(pixels).reduce(factor))
        assert np.array_equal(box_mean(torch.from_numpy(pixels), factor).numpy(), expected)


@needs_library
@pytest.mark.parametrize("name", [name for name, (_, accepted) in KINDS.items() if accepted])
def test_nvimagecodec_on_cpu_agrees_with_reference(name: str) -> None:
    content = KINDS[name][0]
    codec = NvImageCodec(CLIP, torch.device("cpu"))
    [junk, image] = codec([b"no image", content])
    assert junk is None and image is not None
    reference = cpu_decode(content)
    result = difference(image, reference)
    assert result.maximum <= 1 and result.mean < 1e-3
    assert np.array_equal(image.thumbnail, reference.thumbnail)  # type: ignore[arg-type]


@needs_library
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("engine", [True, False])
def test_nvimagecodec_on_gpu_agrees_with_reference(engine: bool) -> None:
    codec = NvImageCodec(CLIP, torch.device("cuda"), engine=engine)
    contents = [content for content, accepted in KINDS.values() if accepted] * 20
    pairs = [(image, content) for image, content in zip(codec(contents), contents, strict=True) if image is not None]
    assert len(pairs) >= 40
    assert all(difference(image, cpu_decode(content)).within_tolerance for image, content in pairs)


@needs_library
def test_store_is_the_same_with_nvimagecodec(folder: Path, tmp_path: Path, encoder: TorchEncoder) -> None:
    stores = [Store.create(tmp_path / name, encoder.space) for name in ("cpu", NAME)]
    reports = [
        index([folder], store, encoder, IndexOptions(threads=1, decoder=name))
        for store, name in zip(stores, ("cpu", NAME), strict=True)
    ]
    assert columns(stores[0]) == columns(stores[1])
    assert reports[0].skipped == reports[1].skipped
    cpu, gpu = (store.snapshot().vectors().astype(np.float32) for store in stores)
    assert np.abs(cpu - gpu).max() < 1e-3  # the store keeps half precision
    on_gpu = [KINDS[key.removeprefix("images/").removesuffix(".jpg")][1] for key in columns(stores[0])["keys"]]
    assert np.array_equal(cpu[~np.array(on_gpu)], gpu[~np.array(on_gpu)])
    assert reports[1].decoded_by == {"cpu": 6, f"{NAME} (cpu)": 4} and reports[1].decoder_unused == ""


@needs_library
def test_threads_share_nvimagecodec(folder: Path, tmp_path: Path, encoder: TorchEncoder) -> None:
    for i in range(20):
        (folder / f"more {i:02d}.jpg").write_bytes(saved(draw_image(500 + i, 500, 20 + i)))
    store = Store.create(tmp_path / "s", encoder.space)
    report = index([folder], store, encoder, IndexOptions(threads=4, batch_size=6, decoder=NAME))
    assert sum(report.decoded_by.values()) == len(store.snapshot()) == 30
    assert report.decoder_unused == ""


class OneWorker(WorkerPool):
    """A pool of one worker in this process."""

    workers, capacity = ["here process 1"], 1

    def __init__(self, *value: Any) -> None:
        self._worker = Worker(*value)
        self.space = self._worker.ready()[1]

    def submit(self, task: Task) -> None:
        self._task = task

    def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
        return [self._worker.work(self._task)]

    def close(self) -> None:
        self._worker.close()


@needs_library
def test_workers_use_the_decoder_option_and_report_it(tmp_path: Path, folder: Path, encoder: TorchEncoder) -> None:
    store, options = Store.create(tmp_path / "s", encoder.space), IndexOptions(threads=1, decoder=NAME)
    with OneWorker(EncoderSpec(encoder.space.encoder, "cpu"), store.folder, options) as pool:
        report = index_with(pool, [folder], store, IndexOptions(rows_per_shard=5))
    assert report.decoded_by == {"cpu": 6, f"{NAME} (cpu)": 4} and report.decoder_unused == ""


@needs_library
def test_nvimagecodec_writes_nothing_to_stderr() -> None:
    program = (
        "import torch; from clipfake.indexer.decoding.nvimagecodec import NvImageCodec, library\n"
        "from clipfake.indexer.decoding.gpu_decoder import probe_jpegs\n"
        "from clipfake.indexer.encoders.preprocess import Preprocess\n"
        "import sys; print('before', file=sys.stderr)\n"
        "one = Preprocess(0, 0, 224, 224, 'bicubic', 1.0, (0, 0, 0), (1, 1, 1))\n"
        "images = NvImageCodec(one, torch.device('cpu'))([*probe_jpegs(), b'no image', probe_jpegs()[0][:-900]])\n"
        "print('after', file=sys.stderr); print([image is not None for image in images])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[True, True, True, True, False, False]"
    assert ran.stderr.split() == ["before", "after"]


def test_auto_uses_gpu_decoder_only_on_gpu(encoder: TorchEncoder) -> None:
    assert gpu_decoder_for("auto", encoder, thumbnails=True) is None
    assert gpu_decoder_for("cpu", encoder, thumbnails=True) is None


@pytest.mark.parametrize("decoder", ["auto", NAME])
def test_gpu_decoder_is_tried_with_and_without_engine(
    decoder: str, encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnGpu(PlainEncoder):
        preprocess, device = encoder.preprocess, torch.device("cuda:1")

    tried: list[bool] = []

    def codec(preprocess: Preprocess, device: torch.device, *, thumbnails: bool, engine: bool) -> DecodeFunction:
        tried.append(engine)
        raise RuntimeError(f"no {device}")

    monkeypatch.setattr(nvimagecodec, "NvImageCodec", codec)
    monkeypatch.setattr(nvimagecodec, "installed", lambda: True)
    taken = gpu_decoder_for(decoder, OnGpu(), thumbnails=True)
    assert taken is not None and taken.name == f"{NAME} (cuda:1)"
    assert taken.decode([LARGE]) == [None]
    assert tried == [True, False] and taken.unused == f"{NAME} (cuda:1) is not used: it failed (no cuda:1)"
    monkeypatch.setattr(nvimagecodec, "installed", lambda: False)
    if decoder == "auto":
        assert gpu_decoder_for(decoder, OnGpu(), thumbnails=True) is None


def test_gpu_decoder_needs_preprocessing_of_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvimagecodec, "installed", lambda: True)
    with pytest.raises(EncoderError, match="omit --decoder"):
        gpu_decoder_for(NAME, PlainEncoder(), thumbnails=True)
    with pytest.raises(EncoderError, match="one of auto, cpu, nvimagecodec"):
        gpu_decoder_for("nvjpeg", PlainEncoder(), thumbnails=True)
    monkeypatch.setattr(nvimagecodec, "installed", lambda: False)
    with pytest.raises(MissingExtra, match=r"clipfake\[nvidia\]"):
        gpu_decoder_for(NAME, PlainEncoder(), thumbnails=True)


def test_missing_decoder_is_reported_before_store_is_created(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvimagecodec, "installed", lambda: False)
    for decoder, code, value in (
        (NAME, 1, "clipfake[nvidia]"),
        ("nvjpeg", 2, "is not one of 'auto', 'cpu', 'nvimagecodec'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["index", "--folders", str(folder), "--store", str(tmp_path / "s"), "--decoder", decoder])
        assert ended.value.code == code
        assert value in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "s").exists()


@needs_library
def test_index_command_prints_decoder_counts(
    folder: Path, tmp_path: Path, encoder: TorchEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ["index", "--folders", str(folder), "--store", str(tmp_path / "s"), "--encoder", encoder.space.encoder]
    with pytest.raises(SystemExit) as ended:
        main([*result, "--device", "cpu", "--decoder", NAME, "--threads", "1"])
    assert not ended.value.code
    assert f"decoded 6 by cpu, 4 by {NAME} (cpu)" in capsys.readouterr().out
