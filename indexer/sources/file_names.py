"""Which files of a folder or archive are images, by name and, where the name does not say, by the first bytes."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache

# Suffixes of the formats that `clipfake.indexer.decoding.image` reads.
# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp",
    ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga", ".icb",
    ".vda", ".vst", ".ico", ".pfm",
)
# Images and videos that are not read: some begin like a TIFF, but hold only a small preview in this form.
UNREAD = frozenset((
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw", ".svg", ".svgz", ".psd",
    ".psb", ".xcf", ".jxl", ".exr", ".hdr", ".eps", ".ai", ".pdf", ".djvu", ".dds", ".wdp", ".jxr", ".icns", ".wmf",
    ".emf", ".pcx", ".qoi", ".bpg", ".dcm", ".nii", ".fits", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v",
))
UNFINISHED = frozenset((".part", ".partial", ".crdownload", ".download", ".opdownload", ".tmp", ".temp", ".aria2"))
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
DOCUMENTS = frozenset((
    ".txt", ".json", ".cls", ".md", ".rst", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg",
    ".py", ".ipynb", ".sh", ".c", ".h", ".js", ".css", ".pt", ".pth", ".safetensors", ".doc", ".docx", ".caption",
    ".license", ".bib", ".tex", ".gitattributes", ".md5", ".sha256", ".sha1", ".xmp", ".mp3", ".wav",
))
# Files that are documents unless their first bytes are those of an image: caches save images under any name.
CHECKED = frozenset((".html", ".htm", ".bin", ".lock", ".dat", ".log"))
# Files that may hold images or labels, in a form that is not read.
CONTAINERS = frozenset((
    ".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".mat", ".tfrecord", ".tfrecords", ".arrow", ".feather", ".mdb",
    ".lmdb", ".db", ".sqlite", ".xls", ".xlsx", ".ods", ".beton",
))
LABEL_FILES = frozenset(("metadata.json", "labels.json", "annotations.json", "dataset.json", "train.json", "test.json"))
# Folders that other programs keep beside images: previews, bins, checkpoints, settings.
FOREIGN_FOLDERS = frozenset((
    "__macosx", "@eadir", "@tmp", "@recycle", "@recycler", "@snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "recycler", "system volume information", "lost+found", "network trash folder", "temporary items", "__pycache__",
))
FOREIGN_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
# fmt: on
_SUFFIXES = frozenset(SUFFIXES)
HEAD_BYTES = 32  # first bytes of a file that show its format
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
)
TIFF = (b"II*\0", b"MM\0*")
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class FileKind(StrEnum):
    """What a file is to the listing; all but `image` and `document` are reported by these words."""

    image = "image"
    document = "document"
    foreign = "files and folders of other programs"
    unread = "images or videos in a format that is not read"
    unfinished = "unfinished downloads"
    archive = "archives inside a folder or archive, which are indexed if they are unpacked or named"
    table = "tables not called metadata.csv, which are indexed if they are named"
    container = "files that may hold images or labels in a form that is not read"
    other = "files that are not images by their first bytes"


def is_image_name(name: str) -> bool:
    """True if a file name has the suffix of an image format that is read."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in _SUFFIXES


def is_foreign(name: str) -> bool:
    """True for a file or folder of another program: hidden ones, previews of network disks, bins, AppleDouble.

    >>> [is_foreign(name) for name in ("@eaDir", ".thumbnails", "._a.jpg", ".Trash-1000", "a.jpg", "train")]
    [True, True, True, True, False, False]
    """
    if name[:1] == ".":
        return name not in (".", "..")
    lower = name.lower()
    return lower in FOREIGN_FOLDERS or lower in FOREIGN_FILES


@lru_cache(maxsize=1024)  # there are millions of files, but few folders
def is_foreign_path(folder: str) -> bool:
    """True if a folder is one of another program, or inside one."""
    return any(map(is_foreign, folder.split("/"))) if folder else False


def file_kind(name: str, head: Callable[[], bytes]) -> FileKind:
    """Return what a file is.

    Parameters
    ----------
    name : file name without folders
    head : returns the first `HEAD_BYTES` of the file; called only if the name does not say what the file is

    >>> [file_kind(name, lambda: b"GIF89a").name for name in ("a.JPG", "a.jpg_large", "a.cr2", "._a.jpg", "a.part")]
    ['image', 'image', 'unread', 'foreign', 'unfinished']
    """
    if is_foreign(name):
        return FileKind.foreign
    if is_image_name(name):
        return FileKind.image
    lower = name.lower()
    if lower.endswith(ARCHIVES):
        return FileKind.archive
    if lower.endswith(TABLES):
        return FileKind.table
    suffix = posixpath.splitext(lower)[1]
    if suffix in CONTAINERS or lower in LABEL_FILES:
        return FileKind.container
    if suffix in DOCUMENTS:
        return FileKind.document
    if suffix in UNREAD:
        return FileKind.unread
    if suffix in UNFINISHED:
        return FileKind.unfinished
    if is_image_head(head(), suffix):
        return FileKind.image
    return FileKind.document if suffix in CHECKED else FileKind.other


def is_image_head(head: bytes, suffix: str = "") -> bool:
    """True if the first bytes of a file are those of an image format that is read.

    Formats with a short or no signature are recognised by their suffix alone. A TIFF may be the raw file of a camera,
    so it is recognised only if the file has no suffix.
    """
    if head.startswith(MAGIC):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return True
    return not suffix and head.startswith(TIFF)


def spellings(path: str) -> Iterator[str]:
    """Iterate over other spellings of a path in a table: Windows' separators, composed or decomposed, Latin-1.

    >>> list(spellings("a.jpg")), list(spellings("x\\\\a.jpg"))
    ([], ['x/a.jpg'])
    """
    tried = {path}
    slashed = path.replace("\\", "/")
    for variant in (slashed, from_latin_1(slashed)):
        for spelling in (variant, *(unicodedata.normalize(form, variant) for form in ("NFC", "NFD"))):
            if spelling not in tried:
                tried.add(spelling)
                yield spelling


def from_latin_1(path: str) -> str:
    """Decode the bytes of a text that were not UTF-8 as those of a Western European Windows."""
    if path.isascii():
        return path
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):  # a surrogate that does not represent a byte
            return path.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return path
