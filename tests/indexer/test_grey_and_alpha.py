"""The right pixels of every mode and depth that a file can have."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from clipfake.errors import ImageError
from clipfake.indexer.decoding import rgb
from clipfake.indexer.decoding.image import decode, pixels_of
from clipfake.indexer.embedding import PixelSource
from PIL import Image as Pillow
from PIL import ImageCms

WIDTH, HEIGHT = 64, 48
RAMP = np.linspace(0, 1, WIDTH)[None].repeat(HEIGHT, 0)
GREY = np.round(RAMP * 255).astype(np.uint8)
GREY16 = np.round(RAMP * 65535).astype(np.uint16)
RGB = np.stack([GREY, 255 - GREY, np.full_like(GREY, 100)], -1)
RGB16 = RGB.astype(np.uint16) * 257
HALF = 0.5  # opacity


def encoded(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, samples: Any, *chunks: bytes) -> bytes:
    """A PNG of (height, n) rows of bytes, or of 16-bit samples."""
    rows = samples.reshape(HEIGHT, -1)
    rows = rows.astype(">u2") if depth == 16 else rows.astype(np.uint8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def tiff(planes: Any, bits: int, kind: str, photometric: int = 1, samples: int = 1, **tags: Sequence[int]) -> bytes:
    """An uncompressed TIFF of one array, or of a list of separate planes; `t338=[2]` sets a tag."""
    order, letter = kind[0], kind[1:]
    planes = planes if isinstance(planes, list) else [planes]
    strips = [plane.astype(kind).tobytes() if letter else bytes(plane) for plane in planes]
    entries = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * samples, 259: [1], 262: [photometric], 277: [samples]}
    entries |= {278: [HEIGHT]} | {int(name[1:]): list(values) for name, values in tags.items()}
    entries |= {273: [0] * len(strips), 279: [len(strip) for strip in strips]}
    start = 8 + 2 + 12 * len(entries) + 4
    more, ends = b"", start + sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = [ends + sum(map(len, strips[:i])) for i in range(len(strips))]
    listed = b""
    for tag, values in sorted(entries.items()):
        short = tag not in (273, 279)
        packed = struct.pack(f"{order}{len(values)}{'H' if short else 'I'}", *values)
        if len(packed) > 4:
            listed += struct.pack(f"{order}HHII", tag, 3 if short else 4, len(values), start + len(more))
            more += packed.ljust(4 * len(values), b"\0")
        else:
            listed += struct.pack(f"{order}HHI", tag, 3 if short else 4, len(values)) + packed.ljust(4, b"\0")
    more = more.ljust(ends - start, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + listed + bytes(4) + more + b"".join(strips)


def lab(image: Pillow.Image) -> Any:
    srgb, cie = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, srgb, cie, outputMode="LAB")


def packed(samples: Any, bits: int) -> Any:
    """(height, n) bytes of samples whose bits follow each other."""
    unpacked = samples.astype(np.uint16)[..., None] >> np.arange(bits)[::-1] & 1
    return np.packbits(unpacked.reshape(len(samples), -1).astype(np.uint8), axis=-1)


def on_white(colours: Any, opacity: Any) -> Any:
    return np.round(np.asarray(colours) * opacity + 255.0 * (1 - opacity))


def with_white(pixels: Any, where: Any) -> Any:
    changed = pixels.copy()
    changed[where] = 255
    return changed


def with_alpha(colours: Any, alpha: Any) -> Any:
    colours = colours if colours.ndim == 3 else colours[..., None]
    return np.concatenate([colours, np.broadcast_to(alpha, (HEIGHT, WIDTH))[..., None]], -1)


def assert_decodes_to(content: bytes, expected: Any, tolerance: int = 1) -> None:
    pixels = decode(content).pixels.astype(int)
    expected = np.asarray(expected, int)
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, -1)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance


DARK = {top: (RAMP * top).astype(np.uint16) for top in (255, 256, 4095)}
FLOAT = RAMP.astype(np.float32)
PGM = f"P5 {WIDTH} {HEIGHT} ".encode()
GREYS: dict[str, bytes] = {
    "8-bit PNG": encoded(Pillow.fromarray(GREY), "PNG"),
    "16-bit PNG": encoded(Pillow.fromarray(GREY16), "PNG"),
    "16-bit PGM": encoded(Pillow.fromarray(GREY16), "PPM"),
    "12-bit PGM": PGM + b"4095\n" + np.round(RAMP * 4095).astype(">u2").tobytes(),
    "16-bit JPEG 2000": encoded(Pillow.fromarray(GREY16), "JPEG2000"),
    "float TIFF": encoded(Pillow.fromarray(FLOAT), "TIFF"),
    "float TIFF, LZW": encoded(Pillow.fromarray(FLOAT), "TIFF", compression="tiff_lzw"),
    "float TIFF, big-endian": tiff(FLOAT, 32, ">f4", t339=[3]),
    "float TIFF, white is zero": tiff(1 - FLOAT, 32, "<f4", photometric=0, t339=[3]),
    "float PFM": f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + FLOAT[::-1].astype("<f4").tobytes(),
    "8-bit TIFF, white is zero": tiff(255 - GREY, 8, "<u1", photometric=0),
    "8-bit signed TIFF": tiff(GREY // 2, 8, "<i1", t339=[2]),
    "12-bit TIFF": tiff(packed(np.round(RAMP * 4095), 12), 12, "<u1"),
    "16-bit TIFF": tiff(GREY16, 16, "<u2"),
    "16-bit TIFF, LZW": encoded(Pillow.fromarray(GREY16), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF, big-endian": tiff(GREY16, 16, ">u2"),
    "16-bit TIFF, white is zero": tiff(65535 - GREY16, 16, "<u2", photometric=0),
    "16-bit signed TIFF": tiff(GREY16 // 2, 16, "<i2", t339=[2]),
    "16-bit signed TIFF, big-endian": tiff(GREY16 // 2, 16, ">i2", t339=[2]),
    "32-bit TIFF": tiff(RAMP * (2**32 - 1), 32, "<u4"),
    "32-bit signed TIFF": tiff(RAMP * (2**31 - 1), 32, "<i4", t339=[2]),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_every_type_looks_like_8_bits(name: str) -> None:
    assert_decodes_to(GREYS[name], GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("top", DARK)
def test_dark_16_bit_grey_stays_dark(kind: str, top: int) -> None:
    expected = DARK[top] / 257
    assert_decodes_to(encoded(Pillow.fromarray(DARK[top]), kind), np.floor(expected + 0.5))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, white is zero"])
def test_few_bits_span_black_to_white(bits: int, kind: str) -> None:
    samples = np.arange(WIDTH)[None].repeat(HEIGHT, 0) % 2**bits
    if kind == "PNG":
        content = png(bits, 0, packed(samples, bits))
    else:
        content = tiff(packed(samples, bits), bits, "<u1", photometric=int(kind == "TIFF"))
    expected = samples * 255 // (2**bits - 1)
    assert_decodes_to(content, 255 - expected if "white" in kind else expected)


FLOATS = {
    "0..255": RAMP * 255,
    "-1..1": RAMP * 2 - 1,
    "NaN": np.where(RAMP > 0.5, np.nan, RAMP),
    "infinite": np.where(RAMP > 0.5, np.inf, RAMP),
}


@pytest.mark.parametrize(("name", "message"), [("0..255", "from 0 to 255"), ("-1..1", "from -1 to 1"), ("NaN", "NaN")])
def test_floats_without_agreed_brightness_are_refused(name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(encoded(Pillow.fromarray(FLOATS[name].astype(np.float32)), "TIFF"))


def test_infinite_floats_are_refused() -> None:
    with pytest.raises(ImageError, match="infinite"):
        decode(encoded(Pillow.fromarray(FLOATS["infinite"].astype(np.float32)), "TIFF"))


def test_floats_slightly_beyond_white_are_clipped() -> None:
    assert_decodes_to(encoded(Pillow.fromarray(FLOAT * np.float32(1.003)), "TIFF"), GREY)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_small_values_in_32_bits_are_not_taken_for_black(top: int) -> None:
    with pytest.raises(ImageError, match=f"only up to {top:,}"):
        decode(tiff(RAMP * top, 32, "<i4", t339=[2]))


def test_negative_integers_are_refused() -> None:
    for bits in (8, 16, 32):
        with pytest.raises(ImageError, match="from -"):
            decode(tiff(GREY.astype(int) - 100, bits, f"<i{bits // 8}", t339=[2]))


COLOURS: dict[str, tuple[bytes, Any]] = {
    "16-bit RGB PNG": (png(16, 2, RGB16), RGB),
    "16-bit RGBA PNG": (png(16, 6, with_alpha(RGB16, 32768)), on_white(RGB, HALF)),
    "16-bit grey PNG with alpha": (png(16, 4, with_alpha(GREY16, 32768)), on_white(GREY, HALF)),
    "16-bit RGB TIFF": (tiff(RGB16, 16, "<u2", 2, 3), RGB),
    "16-bit RGB TIFF, big-endian": (tiff(RGB16, 16, ">u2", 2, 3), RGB),
    "16-bit RGBA TIFF": (tiff(with_alpha(RGB16, 32768), 16, "<u2", 2, 4, t338=[2]), on_white(RGB, HALF)),
    "premultiplied RGBA TIFF": (
        tiff(with_alpha(np.round(RGB * (128 / 255)), 128), 8, "<u1", 2, 4, t338=[1]),
        on_white(RGB, 128 / 255),
    ),
    "premultiplied grey TIFF": (
        tiff(with_alpha(np.round(GREY * (128 / 255)), 128), 8, "<u1", 1, 2, t338=[1]),
        on_white(GREY, 128 / 255),
    ),
    "grey TIFF with alpha": (
        tiff(with_alpha(GREY, 128), 8, "<u1", 1, 2, t338=[2]),
        on_white(GREY, 128 / 255),
    ),
    "RGB TIFF of planes": (tiff([RGB[..., i] for i in range(3)], 8, "<u1", 2, 3, t284=[2]), RGB),
    "CMYK TIFF": (encoded(Pillow.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
    "CMYK JPEG": (encoded(Pillow.fromarray(RGB).convert("CMYK"), "JPEG", quality=100), RGB),
    "YCbCr TIFF": (
        tiff(np.asarray(Pillow.fromarray(RGB).convert("YCbCr")), 8, "<u1", 6, 3, t530=[1, 1]),
        np.asarray(Pillow.fromarray(RGB).convert("YCbCr").convert("RGB")),
    ),
    "RGBA WebP": (
        encoded(Pillow.fromarray(with_alpha(RGB, 128).astype(np.uint8)), "WEBP", lossless=True),
        on_white(RGB, 128 / 255),
    ),
    "LAB TIFF": (encoded(lab(Pillow.fromarray(RGB // 2 + 64)), "TIFF"), RGB // 2 + 64),
    "clear RGBA PNG": (png(8, 6, with_alpha(RGB, 0)), np.full_like(RGB, 255)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_and_alpha_look_like_8_bit_rgb_on_white(name: str) -> None:
    assert_decodes_to(*COLOURS[name], tolerance=5 if name == "LAB TIFF" else 2)  # 8 bits of LAB are coarse


PALETTE = np.arange(192).reshape(64, 3)
INDEXES = np.arange(WIDTH)[None].repeat(HEIGHT, 0)
PLTE = chunk(b"PLTE", bytes(range(192)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [0, 1])
def test_transparent_grey_of_png_becomes_white(bits: int, key: int) -> None:
    samples = INDEXES % 2**bits
    raw = packed(samples, bits) if bits < 8 else samples
    expected = np.floor(samples * 255 / (2**bits - 1) + 0.5)
    content = png(bits, 0, raw, chunk(b"tRNS", key.to_bytes(2, "big")))
    assert_decodes_to(content, with_white(expected, samples == key))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_png_becomes_white(depth: int) -> None:
    samples = RGB if depth == 8 else RGB16
    key = samples[0, 10].astype(">u2").tobytes()
    expected = with_white(RGB, (samples == samples[0, 10]).all(-1))
    assert_decodes_to(png(depth, 2, samples, chunk(b"tRNS", key)), expected)


@pytest.mark.parametrize("alpha", [[255] * 5 + [0], [4 * i for i in range(64)]], ids=["one colour", "all colours"])
def test_transparent_palette_is_blended_with_white(alpha: list[int]) -> None:
    opacity = np.array(alpha + [255] * (64 - len(alpha)))[INDEXES][..., None] / 255
    content = png(8, 3, INDEXES, PLTE, chunk(b"tRNS", bytes(alpha)))
    assert_decodes_to(content, on_white(PALETTE[INDEXES], opacity))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_first_frame_is_used(kind: str) -> None:
    red, blue = (Pillow.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    content = encoded(red, kind, save_all=True, append_images=[blue], quality=100)
    assert_decodes_to(content, np.asarray(red), tolerance=4)


def test_largest_image_of_an_icon_is_used() -> None:
    content = encoded(Pillow.new("RGB", (256, 256), "red"), "ICO", sizes=[(16, 16), (256, 256), (48, 48)])
    assert decode(content).pixels.shape == (256, 256, 3)


SUBSAMPLED = np.zeros(WIDTH * HEIGHT * 3 // 2, np.uint8)
MISREAD = {
    "16-bit planes": tiff([RGB16[..., i] for i in range(3)], 16, "<u2", 2, 3, t284=[2]),
    "planes, white is zero": tiff([GREY], 8, "<u1", 0, t284=[2]),
    "compressed big-endian floats": tiff(
        np.frombuffer(zlib.compress(FLOAT.astype(">f4").tobytes()), np.uint8), 32, ">u1", t259=[8], t339=[3]
    ),
    "compressed big-endian signed": tiff(
        np.frombuffer(zlib.compress((GREY16 // 2).astype(">i2").tobytes()), np.uint8), 16, ">u1", t259=[8], t339=[2]
    ),
    "reduced chroma": tiff(SUBSAMPLED, 8, "<u1", 6, 3, t530=[2, 2]) + bytes(10_000),
}


@pytest.mark.parametrize("name", MISREAD)
def test_tiffs_that_pillow_misreads_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match=r"compressed .*TIFF .*is unsupported"):
        decode(MISREAD[name])


def test_unsupported_kind_of_a_format_is_not_called_no_image() -> None:
    with pytest.raises(ImageError, match="damaged TIFF, or one of an unsupported kind"):
        decode(tiff(np.stack([FLOAT] * 3, -1), 32, "<f4", 2, 3, t339=[3, 3, 3]))


MODES = {
    "1": (Pillow.fromarray(GREY).convert("1"), None),
    "L": (Pillow.fromarray(GREY), GREY),
    "P": (Pillow.fromarray(RGB).convert("P"), None),
    "RGB": (Pillow.fromarray(RGB), RGB),
    "RGBX": (Pillow.fromarray(RGB).convert("RGBX"), RGB),
    "RGBA": (Pillow.fromarray(with_alpha(RGB, 128).astype(np.uint8)), on_white(RGB, 128 / 255)),
    "RGBa": (Pillow.fromarray(with_alpha(RGB, 128).astype(np.uint8)).convert("RGBa"), on_white(RGB, 128 / 255)),
    "LA": (Pillow.fromarray(GREY).convert("LA"), GREY),
    "La": (Pillow.fromarray(GREY).convert("LA").convert("La"), GREY),
    "CMYK": (Pillow.fromarray(RGB).convert("CMYK"), RGB),
    "YCbCr": (Pillow.fromarray(RGB).convert("YCbCr"), RGB),
    "HSV": (Pillow.fromarray(RGB).convert("HSV"), RGB),
    "I;16": (Pillow.fromarray(GREY16), GREY),
    "I": (Pillow.fromarray((RAMP * (2**31 - 1)).astype(np.int32)), GREY),
    "F": (Pillow.fromarray(FLOAT), GREY),
}


@pytest.mark.parametrize("mode", MODES)
def test_pillow_images_of_every_mode_can_be_queried(mode: str) -> None:
    image, expected = MODES[mode]
    assert image.mode == mode
    expected = np.asarray(image.convert("RGB")) if expected is None else expected
    assert_decodes_to(PixelSource(image).read()[0], expected, tolerance=6 if mode in ("HSV", "YCbCr") else 2)


def test_pillow_image_without_agreed_brightness_is_refused() -> None:
    with pytest.raises(ImageError, match="from 0 to 255"):
        PixelSource(Pillow.fromarray(FLOAT * 255)).read()


def test_damaged_file_opened_lazily_is_refused() -> None:
    content = encoded(Pillow.fromarray(RGB), "JPEG")
    damaged = Pillow.open(io.BytesIO(content[:-20]))
    with pytest.raises(ImageError, match="damaged"):
        pixels_of(damaged)


@pytest.mark.parametrize("turn", [None, *Pillow.Transpose])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "PA", "P", "L", "1", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_bands_of_rows_have_the_pixels_of_the_whole_image(
    mode: str, turn: Pillow.Transpose | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    image = Pillow.fromarray(rng.integers(0, 256, (23, 17, 4), np.uint8), "RGBA")
    if mode == "F":
        image = Pillow.fromarray(rng.random((23, 17), np.float32))
    elif mode.startswith("I"):
        image = Pillow.fromarray(rng.integers(0, 65_536, (23, 17)).astype(np.uint16 if mode == "I;16" else np.int32))
        if mode == "I":
            image = image.point(lambda value: value * 32_768)
    elif mode != "RGBA":
        image = image.convert("RGB").quantize(9).convert(mode) if mode == "PA" else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(rng.integers(0, 256, 200, np.uint8))
    whole = rgb.rgb_pixels(image, turn)
    for pixels in (1, 17 * 5, 17 * 22):
        monkeypatch.setattr(rgb, "BAND_PIXELS", pixels)
        np.testing.assert_array_equal(rgb.rgb_pixels(image, turn), whole)
