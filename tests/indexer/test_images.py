"""Decoding, resizing, listing and encoding of image files."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError, ImageError, SourceError
from clipfake.indexer.decoding import image
from clipfake.indexer.decoding.image import decode, jpeg_header, thumbnail
from clipfake.indexer.encoders.base import Encoder, PlainEncoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.preprocess import Preprocess
from clipfake.indexer.encoders.resize import resize_matrix
from clipfake.indexer.encoders.vision_backbone import random_model
from clipfake.indexer.sources.folders import expand, images_in
from clipfake.indexer.sources.image_ref import ImageRef
from PIL import Image as Pillow

SHARED = Path(__file__).parents[3] / "shared"
CLIP = SHARED / "encoders/clip-vit-base-patch32-untrained"
needs_shared = pytest.mark.skipif(not CLIP.is_dir(), reason="the shared encoders are not beside this checkout")


def noise_image(width: int = 37, height: int = 23, seed: int = 0) -> Pillow.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Pillow.fromarray(noise).resize((width, height), Pillow.Resampling.BICUBIC)


def encoded(image: Pillow.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 12}])
def test_jpeg_pixels_equal_pillow(options: dict[str, object]) -> None:
    content = encoded(noise_image(), **options)  # type: ignore[arg-type]
    assert np.array_equal(decode(content).pixels, np.asarray(Pillow.open(io.BytesIO(content))))


@pytest.mark.parametrize("quality", [30, 65, 75, 90, 100])
def test_jpeg_quality_is_estimated_from_tables(quality: int) -> None:
    header = jpeg_header(encoded(noise_image(), quality=quality))
    assert header is not None
    assert header.quality == quality


def test_unusual_formats_become_rgb() -> None:
    red = Pillow.new("RGB", (8, 8), (200, 0, 0))
    rotated = Pillow.Exif()
    rotated[0x0112] = 6  # to be rotated by 90 degrees for display
    clear = Pillow.new("RGBA", (8, 8), (0, 0, 0, 0))
    deep = Pillow.fromarray(np.full((8, 8), 65535, np.uint16))
    frames = encoded(red, "GIF", save_all=True, append_images=[Pillow.new("RGB", (8, 8), "blue")])
    assert decode(encoded(noise_image(40, 20), exif=rotated)).pixels.shape == (40, 20, 3)
    assert decode(encoded(red.convert("CMYK"))).pixels.shape == (8, 8, 3)
    assert (decode(encoded(clear, "PNG")).pixels == 255).all()
    assert (decode(encoded(deep, "PNG")).pixels == 255).all()
    assert decode(frames).pixels[0, 0].tolist() == [200, 0, 0]
    assert decode(encoded(red.convert("P"), "PNG")).pixels[0, 0, 0] > 190
    assert decode(encoded(red.convert("L"))).pixels.shape == (8, 8, 3)


def decodes_to(content: bytes, image: Pillow.Image) -> bool:
    """True if a file decodes to approximately the pixels of the image."""
    return bool(np.abs(decode(content).pixels.astype(int) - np.asarray(image).astype(int)).mean() < 4)


def test_avif_is_decoded_by_pillow() -> None:
    content = encoded(noise_image(64, 48), "AVIF", quality=90)
    assert decodes_to(content, noise_image(64, 48))
    assert decode(content).format == "AVIF"


def test_heic_photos_are_decoded_upright() -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    rotated = Pillow.Exif()
    rotated[0x0112] = 6
    for exif, upright in (
        (None, noise_image(64, 48)),
        (rotated.tobytes(), noise_image(64, 48).transpose(Pillow.Transpose.ROTATE_270)),
    ):
        out = io.BytesIO()
        heif.from_pillow(noise_image(64, 48)).save(out, quality=90, exif=exif)
        assert decodes_to(out.getvalue(), upright)
        with pytest.raises(ImageError):
            decode(out.getvalue()[:-200])


def test_heic_without_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image._register_heic.cache_clear()
    with pytest.raises(ImageError, match=r"reading HEIC needs .*clipfake\[heic\]"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"hello, world", "not an image"), (encoded(noise_image())[:300], "damaged")],
)
def test_invalid_image_raises_image_error(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(content)


def test_decompression_bomb_is_refused_before_decoding() -> None:
    header = bytearray(encoded(noise_image()))
    start = header.index(b"\xff\xc0") + 5
    header[start : start + 4] = (50_000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="pixels"):
        decode(bytes(header))


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
@pytest.mark.parametrize(
    ("size", "thumbnail_size"),
    [
        ((200, 200), (100, 100)),
        ((400, 250), (100, 63)),
        ((1024, 768), (128, 96)),
        ((128, 90), (128, 90)),
        ((1, 1), (1, 1)),
        ((5000, 3), (125, 1)),
        ((2, 3001), (1, 126)),
    ],
)
def test_thumbnail_is_a_small_jpeg_of_the_image(
    size: tuple[int, int], thumbnail_size: tuple[int, int], decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(image, "simplejpeg", None)
    original = noise_image(*size)
    result = Pillow.open(io.BytesIO(thumbnail(np.asarray(original))))
    assert (result.format, result.size) == ("JPEG", thumbnail_size)
    expected = np.asarray(original.resize(thumbnail_size, Pillow.Resampling.BOX), np.float32)
    assert np.abs(np.asarray(result, np.float32) - expected).mean() < 6


def test_thumbnail_accepts_non_contiguous_pixels() -> None:
    transposed = np.asarray(noise_image(300, 120)).transpose(1, 0, 2)
    small = np.asarray(noise_image(30, 20)).transpose(1, 0, 2)
    assert [Pillow.open(io.BytesIO(thumbnail(p))).size for p in (transposed, small)] == [(40, 100), (20, 30)]


@pytest.mark.parametrize("size", [(200, 200), (50, 90), (700, 301), (301, 700), (230, 300), (90, 400)])
@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos"])
def test_resize_equals_pillow(size: tuple[int, int], name: str) -> None:
    image = noise_image(*size, seed=1)
    preprocess = Preprocess(224, 160, 0, 0, name, 1.0, (0, 0, 0), (1, 1, 1))
    resized = preprocess.resize(torch.from_numpy(np.asarray(image)[None].copy()))[0].permute(1, 2, 0).numpy()
    expected = np.asarray(image.resize((160, 224), Pillow.Resampling[name.upper()]), np.float32)
    assert np.abs(resized - expected).max() <= 1
    ties = 1e-2 if name == "bilinear" else 1e-3  # exact halves, which Pillow's fixed-point arithmetic may round down
    assert (resized != expected).mean() < ties


def test_resize_matrix_rows_sum_to_one() -> None:
    assert np.allclose(resize_matrix(31, 17, "lanczos").sum(1), 1, atol=1e-6)


@needs_shared
def test_embeddings_agree_with_transformers() -> None:
    import transformers

    encoder = load_encoder(f"untrained:0:{CLIP}")
    images = [noise_image(200, 200, seed) for seed in range(3)] + [noise_image(300, 220, 9)]
    ours = encoder.encode([np.asarray(image) for image in images])
    processor = transformers.CLIPImageProcessor.from_pretrained(CLIP)
    with torch.inference_mode():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        theirs = random_model(CLIP, 0).eval().get_image_features(pixel_values=pixels).pooler_output.numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    centre = theirs.mean(0)  # with random weights, all vectors are close to each other
    a, b = ours - centre, theirs - centre
    assert ((ours * theirs).sum(1) >= 0.9999).all()
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1) >= 0.999).all()


@pytest.mark.parametrize("name", ["plain", pytest.param("clip", marks=needs_shared)])
def test_encoders_return_unit_vectors_of_their_space(name: str) -> None:
    encoder: Encoder = load_encoder(f"untrained:0:{CLIP}") if name == "clip" else PlainEncoder()
    pixels = [np.asarray(noise_image(50, 60, seed)) for seed in range(3)]
    vectors = encoder.encode(pixels)
    assert vectors.shape == (3, encoder.space.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[1:2], encoder.encode(pixels[1:2]), atol=1e-5)
    if encoder.has_text:
        assert encoder.encode_texts(["cat", "a longer name"]).shape == (2, encoder.space.dim)


def test_missing_encoder_raises_encoder_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"config\.json"):
        load_encoder(str(tmp_path))


def artifact(folder: Path, *lines: str, header: str = "filename,image_path,target,category") -> Path:
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def test_artifact_folder_is_listed_by_its_table(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "cycle_gan", "a.jpg,x/a.jpg,0,horse", "a.jpg,y/a.jpg,6,horse")
    assert list(images_in([folder])) == [
        ImageRef("cycle_gan/x/a.jpg", str(folder / "x/a.jpg"), 0, 0, "cycle_gan", "", "horse"),
        ImageRef("cycle_gan/y/a.jpg", str(folder / "y/a.jpg"), 1, 6, "cycle_gan", "cycle_gan", "horse"),
    ]


def test_invalid_rows_are_refused_individually(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "s", "a,a.jpg,9,", "a,../b.jpg,0,", "a,c.jpg,1,", "a,c.jpg,1,")
    assert [bool(e.refused) for e in images_in([folder])] == [True, True, False, True]


def test_missing_columns_raise_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column target"):
        list(images_in([artifact(tmp_path / "s", "a", header="image_path")]))


def test_labels_come_from_folder_names(tmp_path: Path) -> None:
    for name in ("t/progan/0_real/a.png", "t/progan/1_fake/b.png", "t/fake/sd14/c.png", "t/d.png", "t/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    fields = {e.key: (e.label, e.source, e.generator) for e in images_in([tmp_path / "t"])}
    assert fields == {
        "t/d.png": (-1, "t", ""),
        "t/fake/sd14/c.png": (1, "t/fake/sd14", "sd14"),
        "t/progan/0_real/a.png": (0, "t/progan/0_real", ""),
        "t/progan/1_fake/b.png": (1, "t/progan/1_fake", "progan"),
    }


def test_folders_are_expanded_and_checked(tmp_path: Path) -> None:
    for name in ("a/x", "b/x", "a/y"):
        (tmp_path / name).mkdir(parents=True)
    assert [p.name for p in expand([f"{tmp_path}/a/*", tmp_path / "a/y"])] == ["x", "y"]
    with pytest.raises(SourceError, match="does not exist"):
        expand([tmp_path / "nowhere"])
    with pytest.raises(SourceError, match="one name"):
        expand([tmp_path / "a/x", tmp_path / "b/x"])
    with pytest.raises(SourceError, match="no images"):
        list(images_in([tmp_path / "a/x"]))
