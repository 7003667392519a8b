"""Inputs of the GPU kernels (packed batches, integer resampling weights), and thumbnails from the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from clipfake.errors import EncoderError
from clipfake.indexer.batch_encoder import BatchEncoder
from clipfake.indexer.decoding.image import Pixels, reduced
from clipfake.indexer.distributed import process_pool
from clipfake.indexer.encoders.base import Embeddings, PlainEncoder
from clipfake.indexer.encoders.clip_vision import ClipVision, VisionConfig
from clipfake.indexer.encoders.gpu import batch_input
from clipfake.indexer.encoders.gpu.batch_input import ALIGN, PackedArrays, ReducedImages
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.preprocess import Preprocess
from clipfake.indexer.encoders.resize import BITS
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store
from PIL import Image
from safetensors.torch import load_file, save_file

CLIP = Preprocess(0, 0, 56, 56, "bicubic", 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


def random_images(*sizes: tuple[int, int]) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_packed_arrays_are_aligned_and_complete() -> None:
    arrays: list[npt.NDArray[Any]] = [
        np.arange(7, dtype=np.uint8),
        np.arange(5, dtype=np.int32),
        np.zeros((3, 16, 3), np.uint8),
    ]
    packed = PackedArrays.from_arrays(arrays)
    buffer = np.concatenate(packed.parts)
    assert len(buffer) == packed.size
    for array, offset in zip(arrays, packed.offsets, strict=True):
        start = int(offset) * ALIGN
        assert buffer[start : start + array.nbytes].tobytes() == array.tobytes()


def gather(
    row: npt.NDArray[np.int32], weights: npt.NDArray[np.int32], image: Pixels, cropped: tuple[int, int]
) -> Pixels:
    """Resize like the kernel: integer sums along the inner axis, rounded to 8 bits, then along the outer axis."""
    _, height, width, x_table, x_taps, y_table, y_taps, height_first = row.tolist()
    assert (height, width) == image.shape[:2]
    values = image.astype(np.int64)
    passes = [(1, x_table, x_taps, cropped[1]), (0, y_table, y_taps, cropped[0])]
    for axis, table, taps, new in reversed(passes) if height_first else passes:
        first = weights[table : table + new]
        factors = weights[table + new : table + new + new * taps].reshape(new, taps).astype(np.int64)
        lines = np.moveaxis(values, axis, 0)
        index = np.minimum(first[:, None] + np.arange(taps), len(lines) - 1)
        sums = (lines[index] * factors[:, :, None, None]).sum(1) + 2 ** (BITS - 1)
        values = np.moveaxis(np.clip(sums >> BITS, 0, 255), 0, axis)
    return values.astype(np.uint8)


@pytest.mark.parametrize("filter_", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("short, crop, height, width", [(56, 56, 0, 0), (0, 0, 40, 64), (70, 56, 0, 0)])
def test_integer_weights_give_exactly_pillows_pixels(
    filter_: str, short: int, crop: int, height: int, width: int
) -> None:
    preprocess = Preprocess(height, width, short, crop, filter_, 1 / 255, CLIP.mean, CLIP.std)
    batch = random_images((200, 200), (57, 311), (430, 97), (56, 56), (1024, 300))
    table, weights, cropped = batch_input._resize_tables(preprocess, batch)
    for row, image in zip(table, batch, strict=True):
        new = preprocess.resized_size(*image.shape[:2])
        pillow = Image.fromarray(image).resize((new[1], new[0]), Image.Resampling[filter_.upper()])
        top, left = (new[0] - cropped[0]) // 2, (new[1] - cropped[1]) // 2
        expected = np.asarray(pillow)[top : top + cropped[0], left : left + cropped[1]]
        assert np.array_equal(gather(row, weights, image, cropped), expected)


def test_batch_with_several_input_sizes_is_refused() -> None:
    uncropped = Preprocess(0, 0, 56, 0, "bicubic", 1 / 255, CLIP.mean, CLIP.std)
    with pytest.raises(EncoderError, match=r"\(56, 56\) and of \(112, 56\)"):
        batch_input._resize_tables(uncropped, random_images((100, 100), (200, 100)))


def test_reduced_images_are_read_from_their_buffer() -> None:
    batch = random_images((200, 200), (64, 90), (513, 300))
    table, shapes = batch_input._reduce_table(batch)
    small = [reduced(image) for image in batch]
    assert shapes == [image.shape[:2] for image in small]
    buffer = np.zeros(int(table[-1, 4]) * ALIGN + small[-1].size, np.uint8)
    for row, image in zip(table, small, strict=True):
        buffer[row[4] * ALIGN :][: image.size] = image.reshape(-1)
    read = ReducedImages(torch.from_numpy(buffer), shapes, table[:, 4]).download().images()
    assert all(np.array_equal(a, b) for a, b in zip(read, small, strict=True))


def test_products_that_differ_from_pillow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_input.check_products(CLIP, torch.device("cpu"))
    resize = Preprocess.resize
    monkeypatch.setattr(Preprocess, "resize", lambda self, batch: resize(self, batch) + 2)
    with pytest.raises(EncoderError, match="differently from Pillow"):
        batch_input.check_products(CLIP, torch.device("cpu"))


class ReducingEncoder(PlainEncoder):
    """An encoder that reduces images for thumbnails, like one on a GPU."""

    reduces = True
    calls = 0

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        self.calls += 1
        return super().begin_reduced(images)


def test_thumbnails_from_the_encoder_equal_those_of_the_reader(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(random_images((200, 200), (90, 64), (300, 500), (33, 260))):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"not an image")
    thumbnails = []
    encoder = ReducingEncoder()
    for name, tested in (("plain", PlainEncoder()), ("reducing", encoder)):
        store = Store.create(tmp_path / name, tested.space)
        report = index([folder], store, tested, IndexOptions(text=False, batch_size=3))
        assert report.added == 4
        snapshot = store.snapshot()
        thumbnails.append(snapshot.thumbnails(np.arange(4)))
    assert encoder.calls == 2
    assert list(thumbnails[0]) == list(thumbnails[1])
    assert all(thumbnails[0])


def test_out_of_memory_halves_a_batch_with_thumbnails() -> None:
    class LimitedEncoder(PlainEncoder):
        reduces = True

        def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().begin(images)

        def encode(self, images: Sequence[Pixels]) -> Embeddings:
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().encode(images)

    batch = random_images((200, 200), (150, 90), (64, 64), (40, 300))
    encoder = BatchEncoder(LimitedEncoder(), 4)
    vectors, reduced_images = encoder.begin_reduced(batch)()
    assert encoder.batch_size == 2
    assert np.array_equal(vectors, PlainEncoder().encode(batch))
    assert all(np.array_equal(a, reduced(b)) for a, b in zip(reduced_images, batch, strict=True))


@torch.inference_mode()
def test_patch_product_equals_the_convolution() -> None:
    config = VisionConfig(width=48, hidden=64, layers=2, heads=2, side=70, patch=32, dim=16)
    torch.manual_seed(0)
    model = ClipVision(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    pixels = torch.randn(3, 3, 70, 70)
    by_convolution = model(pixels)
    assert torch.allclose(model.double()(pixels.double()).float(), by_convolution, atol=1e-5)


def test_processes_share_a_gpu_by_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)

    def processes(device: str, cores: int) -> int:
        return process_pool.processes_for(device, lambda: 10**6, cores)

    assert (processes("auto", 16), processes("cuda", 4), processes("cuda:0,cuda:1", 16)) == (8, 2, 8)
    assert process_pool.processes_for("cuda", lambda: 10, 16) == 1
    Properties.total_memory = 24 * 2**30
    assert processes("cuda:1", 16) == 3
    assert processes("cuda:7", 16) == 1  # no such device: loading the encoder reports it


@pytest.mark.parametrize("factor, at_the_start", [(1e3, False), (1e6, True)])
def test_fp16_that_overflows_is_computed_again_in_bf16(factor: float, at_the_start: bool, tmp_path: Path) -> None:
    standin = build_standin(tmp_path / "standin")
    weights = load_file(standin / "model.safetensors")
    for name in ("layer_norm2.weight", "mlp.fc1.weight"):  # activations beyond 65,504, with 1e6 weights too
        weights[f"vision_model.encoder.layers.0.{name}"] *= factor
    save_file(weights, standin / "model.safetensors")
    batch = random_images((64, 64), (64, 80), (90, 64))
    encoder = load_encoder(str(standin), device="cpu", precision="fp16")
    assert isinstance(encoder, TorchEncoder)
    assert (encoder.dtype is torch.bfloat16) == at_the_start
    vectors = encoder.encode(batch)
    assert encoder.dtype is torch.bfloat16
    expected = load_encoder(str(standin), device="cpu", precision="bf16").encode(batch)
    assert (vectors * expected).sum(1).min() > 0.99


def test_fp16_without_overflow_stays(tmp_path: Path) -> None:
    standin = build_standin(tmp_path / "standin")
    batch = random_images((64, 64), (90, 64))
    encoder = load_encoder(str(standin), device="cpu", precision="fp16")
    vectors = encoder.encode(batch)
    assert isinstance(encoder, TorchEncoder)
    assert encoder.dtype is torch.float16
    assert (vectors * load_encoder(str(standin), device="cpu").encode(batch)).sum(1).min() > 0.999
