"""Metadata of image files: the orientation, and files without the metadata that a reader can stumble over.

Metadata never costs an image: what cannot be read is ignored. Pillow refuses a PNG with much compressed text, for
instance, or one whose comment has a wrong checksum, although the pixels are sound.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal

from PIL import ExifTags
from PIL import Image as Pillow

ORIENTATION = ExifTags.Base.Orientation
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
JP2, JP2_METADATA = b"\0\0\0\x0cjP  ", (b"uuid", b"uinf", b"xml ")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TAG_TYPES = {ORIENTATION: (3, 4), 282: (5,), 283: (5,), 296: (3,)}  # of orientation, resolution and its unit
# Tags of width, height, bits, compression, samples, rows of a strip, planes, and width and height of a tile.
LAYOUT = frozenset((256, 257, 258, 259, 277, 278, 284, 322, 323))
MOST_ENTRIES = 65_535  # of a directory; libtiff reads no more of a BigTIFF than 4096
# Text chunks of PNG that can hold an orientation: EXIF as ImageMagick writes it, and XMP.
ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
MAX_TEXT = 2**20  # bytes of such a text; Pillow reads no more of a compressed one
APP14, APP14_BYTES = 0xEE, 16  # Adobe's segment of a JPEG, which says how to read the colours, and its size
EXIF_ITEM = re.compile(rb"(infe[\x02\x03].{7}(?:..)?)Exif", re.DOTALL)  # in the item list of AVIF and HEIF files
TRANSPOSITIONS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def transposition(image: Pillow.Image) -> Pillow.Transpose | None:
    """How to turn a loaded image upright; None if it is upright, or if its orientation is invalid or unreadable."""
    try:
        exif = Pillow.Exif()
        exif.load(without_damaged_tags(image.info.get("exif", b"").removeprefix(b"Exif\0\0")))
        orientation = exif.get(ORIENTATION)
        if orientation is None:  # it may be in the tags of a TIFF, or in XMP
            orientation = image.getexif().get(ORIENTATION)
    except Exception:  # noqa: BLE001 - damaged EXIF can raise almost anything
        return None
    return TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None


def without_damaged_tags(content: bytes) -> bytes:
    """Return a TIFF, or EXIF, without the tags in its first directory that Pillow stumbles over.

    These are tags whose values lie outside the file, after which Pillow reads no others, and a resolution or an
    orientation that is not a number. Their entries are removed; nothing else moves.
    """
    order, count_bytes, entry_bytes, word = _tiff_words(content)

    def number(start: int, length: int) -> int:
        return int.from_bytes(content[start : start + length], order)

    def is_sound(entry: int) -> bool:
        tag, kind, count = number(entry, 2), number(entry + 2, 2), number(entry + 4, word)
        size = count * TYPE_BYTES.get(kind, 0)
        outside = size > word and number(entry + 4 + word, word) + size > len(content)
        return not outside and kind in TAG_TYPES.get(tag, (kind,))

    directory = number(word, word)
    first = directory + count_bytes
    end = first + number(directory, count_bytes) * entry_bytes  # where the offset of the next directory is
    if content[:4] not in TIFF or end + word > len(content):
        return content
    entries = range(first, end, entry_bytes)
    kept = [content[entry : entry + entry_bytes] for entry in entries if is_sound(entry)]
    if len(kept) == len(entries):
        return content
    listed = len(kept).to_bytes(count_bytes, order) + b"".join(kept) + content[end : end + word]
    return content[:directory] + listed.ljust(end + word - directory, b"\0") + content[end + word :]


def states_layout_twice(content: bytes) -> bool:
    """True if the first directory of a TIFF has two sizes or layouts: Pillow takes the last, libtiff the first."""
    order, count_bytes, entry_bytes, word = _tiff_words(content)
    directory = int.from_bytes(content[word : 2 * word], order)
    first = directory + count_bytes
    entries = int.from_bytes(content[directory:first], order)
    end = min(first + min(entries, MOST_ENTRIES) * entry_bytes, len(content))
    layout = [
        tag
        for tag in (int.from_bytes(content[start : start + 2], order) for start in range(first, end, entry_bytes))
        if tag in LAYOUT
    ]
    return len(layout) > len(set(layout))


def _tiff_words(content: bytes) -> tuple[Literal["little", "big"], int, int, int]:
    """Byte order, and bytes of a number of entries, of an entry and of an offset."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    is_big = 43 in content[2:4]  # BigTIFF
    return (order, 8, 20, 8) if is_big else (order, 2, 12, 4)


def without_metadata(content: bytes) -> bytes:
    """Return the file with its pixels and a readable orientation alone; unchanged for most other formats."""
    if content.startswith(PNG):
        return _bare_png(content)
    if content.startswith(JPEG):
        return _bare_jpeg(content)
    if content.startswith(JP2):
        return _bare_jp2(content)
    if content[4:8] == b"ftyp":
        return EXIF_ITEM.sub(rb"\1free", content)  # an item of an unknown type is ignored
    return content


def _bare_png(content: bytes) -> bytes:
    """Drop the ancillary chunks of a PNG, and the later frames of an animation, whose chunks are ancillary too."""
    chunks = [content[start:end] for start, end in _png_chunks(content) if _is_needed(content[start:end])]
    return PNG + b"".join(chunks)


def _png_chunks(content: bytes) -> Iterator[tuple[int, int]]:
    """Where each chunk starts and ends; what follows the last whole chunk comes last."""
    start = len(PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        yield start, end
        start = end


def _is_needed(chunk: bytes) -> bool:
    """True for a chunk of pixels, colours or orientation."""
    kind, data, checksum = chunk[4:8], chunk[8:-4], chunk[-4:]
    if kind[:1].isupper() or kind == b"tRNS":  # upper case: critical
        return True
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != checksum:
        return False
    return kind == b"eXIf" or (data.startswith(ORIENTATION_TEXTS) and _is_short_text(kind, data))


def _is_short_text(kind: bytes, data: bytes) -> bool:
    """True for a text that Pillow reads."""
    packed = data.partition(b"\0")[2]
    if kind == b"iTXt":
        if packed[:1] == b"\0":
            return len(data) <= MAX_TEXT
        packed = b"\0" + packed[2:].split(b"\0", 2)[-1]  # after flag, method, language and translated keyword
    elif kind != b"zTXt":
        return kind == b"tEXt" and len(data) <= MAX_TEXT
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(packed[1:], MAX_TEXT)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _bare_jp2(content: bytes) -> bytes:
    """Drop the boxes of metadata of a JPEG 2000 file; Pillow does not reach the pixels after large ones."""
    kept, start = [], 0
    while start + 8 <= len(content):
        length, kind = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8]
        if length < 8:  # 1: a longer length follows; 0: it lasts to the end
            break
        if kind not in JP2_METADATA:
            kept.append(content[start : start + length])
        start += length
    return b"".join(kept) + content[start:]


def _bare_jpeg(content: bytes) -> bytes:
    """Drop the application segments and comments of a JPEG before its first scan, except Adobe's and EXIF."""
    kept, start = [JPEG], len(JPEG)
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != 0xDA:
        marker, end = content[start + 1], start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        exif = marker == 0xE1 and content[start + 4 : start + 10] == b"Exif\0\0"
        adobe = marker == APP14 and end - start >= APP14_BYTES
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or adobe or exif:
            kept.append(content[start:end])
        start = end
    return b"".join(kept) + content[start:]
