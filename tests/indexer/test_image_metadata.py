"""Metadata never costs an image, and never reaches the terminal."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.errors import ImageError
from clipfake.indexer.decoding.image import decode
from clipfake.indexer.embedding import PixelSource
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
IMAGE = Pillow.fromarray(PIXELS)
ORIENTATION = 0x0112


def encoded(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    IMAGE.save(out, kind, **options)
    return out.getvalue()


PLAIN = encoded("PNG")
END = PLAIN.rindex(b"IEND") - 4
TEXT = zlib.compress(b'{"workflow": "' + b"x" * 1_500_000 + b'"}')


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wrong_checksum(kind: bytes, data: bytes) -> bytes:
    return chunk(kind, data)[:-1] + b"?"


def exif(kind: int, *values: int, make: bytes = b"") -> bytes:
    """EXIF with one orientation of this type, after a maker's name that lies outside if it is longer than its data."""
    packed = {2: lambda: bytes(values), 3: lambda: struct.pack(f"<{len(values)}H", *values)}
    data = packed.get(kind, lambda: struct.pack("<I", 38))()
    entries = [struct.pack("<HHI4s", ORIENTATION, kind, 1 if kind == 5 else len(values), data.ljust(4, b"\0")[:4])]
    if make:
        entries.insert(0, struct.pack("<HHI4s", 0x010F, 2, 1000, make))
    fraction = struct.pack("<II", *values) if kind == 5 else b""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + fraction.rjust(16)


LARGE = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + TEXT),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + TEXT),
    "tEXt": chunk(b"tEXt", b"workflow\0" + b"x" * 70_000_000),
    "many zTXt": 70 * chunk(b"zTXt", b"k\0\0" + zlib.compress(b"y" * 1_000_000)),
    "profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000))),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + TEXT),
    "raw EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + TEXT),
    "unknown compression": chunk(b"zTXt", b"workflow\0\7" + TEXT),
    "wrong checksum": wrong_checksum(b"tEXt", b"a\0b"),
    "wrong checksum of EXIF": wrong_checksum(b"eXIf", b"II*\0"),
    "short resolution": chunk(b"pHYs", b"\0"),
    "two animations": 2 * chunk(b"acTL", bytes(8)),
    "damaged animation": chunk(b"fcTL", bytes(3)),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("position", [33, END], ids=["before the pixels", "after the pixels"])
def test_png_has_the_pixels_it_has_without_metadata(name: str, position: int) -> None:
    image = decode(PLAIN[:position] + LARGE[name] + PLAIN[position:])
    assert np.array_equal(image.pixels, PIXELS)


def test_orientation_is_applied_beside_large_text() -> None:
    turned = encoded("PNG", exif=exif(3, 6))
    assert decode(turned[:33] + LARGE["zTXt"] + turned[33:]).pixels.shape == (30, 20, 3)


def test_transparency_is_kept_beside_large_text() -> None:
    key = chunk(b"tRNS", PIXELS[0, 0].astype(">u2").tobytes())
    assert decode(PLAIN[:33] + key + LARGE["zTXt"] + PLAIN[33:]).pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("text", ["zTXt", "wrong checksum"])
def test_truncated_png_with_text_stays_refused(text: str) -> None:
    content = PLAIN[:33] + LARGE[text] + PLAIN[33:]
    with pytest.raises(ImageError):
        decode(content[: -len(PLAIN) // 2])


def test_bomb_with_large_text_stays_refused() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    with pytest.raises(ImageError, match="pixels"):
        decode(PLAIN[:8] + header + LARGE["zTXt"] + PLAIN[33:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied_if_it_is_valid(kind: str, orientation: int) -> None:
    tags = Pillow.Exif()
    tags[ORIENTATION] = orientation
    turned = orientation in (5, 6, 7, 8)
    assert decode(encoded(kind, exif=tags)).pixels.shape == ((30, 20, 3) if turned else (20, 30, 3))


INVALID = {
    "a string": exif(2, *b"6\0"),
    "a fraction": exif(5, 6, 1),
    "no directory": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "a short header": b"Exif\0\0II",
    "no TIFF": b"Exif\0\0garbage in place of a directory",
    "a loop": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8),
    "an endless directory": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + bytes(40),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", INVALID)
def test_invalid_exif_is_ignored(kind: str, name: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(kind, exif=INVALID[name], **options)
    assert np.array_equal(decode(content).pixels, decode(encoded(kind, **options)).pixels)


def test_orientation_after_a_damaged_tag_is_applied() -> None:
    assert decode(encoded("JPEG", exif=exif(3, 6, make=b"\xff\xff\xff\x7f"))).pixels.shape == (30, 20, 3)


def test_pillow_image_with_invalid_exif_can_be_queried() -> None:
    image = Pillow.open(io.BytesIO(encoded("PNG", exif=INVALID["no TIFF"])))
    assert np.array_equal(decode(PixelSource(image).read()[0]).pixels, PIXELS)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["TIFF", "AVIF"]))
def test_damaged_tags_cost_no_image(data: st.DataObject, kind: str) -> None:
    """Of a TIFF the entries of other tags than those of the pixels, of AVIF the EXIF."""
    tags = Pillow.Exif()
    tags[0x010F], tags[0x0131], tags[0x011A] = "maker" * 9, "software" * 9, 72.0
    content = bytearray(encoded(kind, exif=tags, quality=100))
    if kind == "TIFF":
        directory = int.from_bytes(content[4:8], "little")
        entries = range(directory + 2, directory + 2 + 12 * content[directory], 12)
        damaged = [entry for entry in entries if bytes(content[entry : entry + 2]) in (b"\x0f\1", b"\x31\1", b"\x1a\1")]
        places = [entry + offset for entry in damaged for offset in range(2, 12)]
    else:
        start = content.index(b"makermaker") - 60
        places = list(range(start, start + 100))
    before = decode(bytes(content)).pixels
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    assert np.array_equal(decode(bytes(content)).pixels, before)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


SEGMENTS = {
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "several images without a list": segment(0xE2, b"MPF\0II*\0\x08\0\0\0"),
    "profile without numbers": segment(0xE2, b"ICC_PROFILE\0"),
    "large profile": b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 99]) + bytes(65_000)) for i in range(1, 100)),
    "extended XMP": 40 * segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_segments_cost_no_image(name: str, orientation: int) -> None:
    content = encoded("JPEG", exif=exif(3, orientation))
    pixels = decode(content[:2] + SEGMENTS[name] + content[2:]).pixels
    assert np.array_equal(pixels, decode(content).pixels)


@pytest.mark.parametrize("kind", [b"uuid", b"xml "])
def test_large_boxes_cost_no_jpeg_2000(kind: bytes) -> None:
    content, box = encoded("JPEG2000"), struct.pack(">I", 5_000_008) + kind + bytes(5_000_000)
    start = content.index(b"jp2c") - 4
    assert np.array_equal(decode(content[:start] + box + content[start:]).pixels, PIXELS)


LARGE_EXIF = exif(3, 6) + bytes(3_000_000)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_large_exif_is_read(kind: str) -> None:
    assert decode(encoded(kind, exif=LARGE_EXIF)).pixels.shape == (30, 20, 3)


NOISY = """
import sys
from pathlib import Path
from clipfake.errors import ImageError
from clipfake.indexer.decoding.image import decode
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes())
    except ImageError:
        pass
"""


def test_damaged_images_print_nothing(tmp_path: Path) -> None:
    tiff = bytearray(encoded("TIFF", compression="tiff_lzw"))
    tiff[20:60] = bytes(40)  # libtiff prints an error
    (tmp_path / "a.tif").write_bytes(tiff)
    (tmp_path / "b.tif").write_bytes(encoded("TIFF")[:50])  # Pillow warns that EXIF is corrupt
    (tmp_path / "c.png").write_bytes(PLAIN[:33] + LARGE["two animations"] + PLAIN[33:])  # Pillow warns
    samples = bytearray(encoded("TIFF"))
    samples[samples.index(b"\x15\x01\x03\0") + 8] = 99  # samples per pixel: Pillow logs an error
    (tmp_path / "d.tif").write_bytes(samples)
    Pillow.new("1", (9_900, 9_900)).save(tmp_path / "e.png")  # Pillow warns of a decompression bomb
    result = subprocess.run([sys.executable, "-c", NOISY, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""
