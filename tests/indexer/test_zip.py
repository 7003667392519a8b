"""Zip archives are listed like the folder they were packed from, and damage is reported."""

import io
import posixpath
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.errors import ImageError, SourceError
from clipfake.indexer.sources.archives import zip_directory
from clipfake.indexer.sources.archives.zip_archive import ZipArchive
from clipfake.indexer.sources.archives.zip_directory import ZipDirectory
from clipfake.indexer.sources.folders import images_in
from clipfake.indexer.sources.image_ref import ArchiveSpan, ImageRef

Members = dict[str, bytes]
TABLE = b"image_path,target\n"


def packed(path: Path, members: Members, method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def rows_of(source: object) -> list[tuple[object, ...]]:
    return sorted((*ref[:1], *ref[2:7], bool(ref.refused)) for ref in images_in([source]))  # type: ignore[list-item]


def refs(source: ZipArchive) -> Iterator[ImageRef]:
    return (listed for listed in source.images() if isinstance(listed, ImageRef))


def contents(path: Path) -> Members:
    return {ref.key: ref.byte_source.read()[0] for ref in refs(ZipArchive(str(path)))}


def only_image(path: Path) -> ImageRef:
    [ref] = refs(ZipArchive(str(path)))
    return ref


def patched(path: Path, offset: int, content: bytes) -> Path:
    """Change bytes of the first record in an archive's directory."""
    archive = bytearray(path.read_bytes())
    start = archive.index(b"PK\x01\x02") + offset
    archive[start : start + len(content)] = content
    path.write_bytes(archive)
    return path


def random_tree(rng: np.random.Generator) -> Members:
    """Images, other files and tables at any depth."""
    names = ["real", "fake", "sd14", "test", "x y", "ü", "1_fake"]
    folders = ["", *("/".join(rng.choice(names, rng.integers(1, 4))) for _ in range(6))]
    made: Members = {}
    for folder in folders:
        inside = [f"{i}{rng.choice(['.jpg', '.PNG', '.txt', '.é.webp'])}" for i in range(rng.integers(0, 4))]
        made |= {posixpath.join(folder, name): b"x" * int(rng.integers(0, 9)) for name in inside}
    for folder in rng.choice(folders, rng.integers(0, 3)):
        below = [name for name in made if name.startswith(folder)]
        rows = [str(rng.choice(below))[len(folder) :].strip("/") for _ in range(3)] if below else []
        lines = [f"{row or '../x.jpg'},{rng.integers(0, 8)}\n" for row in rows]
        made[posixpath.join(folder, "metadata.csv")] = TABLE + "".join(lines).encode()
    return made


@pytest.mark.parametrize("seed", range(30))
def test_zip_is_listed_like_its_folder(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = random_tree(rng) | {"always.jpg": b""}
    for name, content in members.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(content)
    shuffled = {name: members[name] for name in rng.permutation(list(members))}
    path = packed(tmp_path / "p.zip", shuffled, int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    try:
        expected = rows_of(tmp_path / "p")
    except SourceError:  # a table without rows at the top
        with pytest.raises(SourceError):
            rows_of(path)
        return
    assert rows_of(path) == expected
    for ref in refs(ZipArchive(str(path))):
        if not ref.refused:
            assert ref.byte_source.read()[0] == members[ref.path.split("::")[0].removeprefix("zip://")]


def test_images_are_listed_in_archive_order(tmp_path: Path) -> None:
    members = {
        "z.jpg": b"",
        "t/b.jpg": b"",
        "y.jpg": b"",
        "t/a.jpg": b"",
        "t/metadata.csv": TABLE + b"b.jpg,0\na.jpg,1\n",
    }
    images = refs(ZipArchive(str(packed(tmp_path / "p.zip", members))))
    assert [ref.key for ref in images] == ["p/z.jpg", "t/b.jpg", "t/a.jpg", "p/y.jpg"]


def test_more_than_65535_members(tmp_path: Path) -> None:
    path = packed(tmp_path / "p.zip", {f"{i}.jpg": str(i).encode() for i in range(65_537)})
    images = list(refs(ZipArchive(str(path))))
    assert [ref.key for ref in images] == [f"p/{i}.jpg" for i in range(65_537)]
    assert images[-1].byte_source.read()[0] == b"65536"


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 9])
@pytest.mark.parametrize("limit", [10, 1 << 31])
def test_zip64_and_data_before_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, limit: int
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)  # sizes, offsets and the end record in their zip64 form
    members = {f"{i}.jpg": bytes([i]) * (7 * i) for i in range(9)}
    path = packed(tmp_path / "p.zip", members, zipfile.ZIP_DEFLATED)
    assert (b"PK\x06\x06" in path.read_bytes()) == (limit == 10)
    path.write_bytes(before + path.read_bytes())
    assert contents(path) == {f"p/{name}": content for name, content in members.items()}


@pytest.mark.parametrize("comment", [b"made by us", b"PK\x05\x06" * 9, b"x" * 0xFFFF])
def test_comment_does_not_hide_the_directory(tmp_path: Path, comment: bytes) -> None:
    path = packed(tmp_path / "p.zip", {"a.jpg": b"a"}, comment=comment)
    assert contents(path) == {"p/a.jpg": b"a"}


def test_data_after_the_archive_is_ignored(tmp_path: Path) -> None:
    path = packed(tmp_path / "p.zip", {"a.jpg": b"a"})
    path.write_bytes(path.read_bytes() + b"appended")
    assert contents(path) == {"p/a.jpg": b"a"}


def renamed(path: Path, name: bytes, flags: int) -> Path:
    """Replace the name of an archive's only member by one of the same length."""
    content = path.read_bytes().replace(b"N" * len(name), name)
    start = content.index(b"PK\x01\x02") + 8
    path.write_bytes(content[:start] + flags.to_bytes(2, "little") + content[start + 2 :])
    return path


@pytest.mark.parametrize(
    ("raw", "flags", "key"),
    [
        ("ü.jpg".encode(), 0x800, "p/ü.jpg"),
        ("ü.jpg".encode(), 0, "p/ü.jpg"),  # macOS does not set the flag
        ("ü.jpg".encode("cp437"), 0, "p/ü.jpg"),
        (b"\xff\xfe.jpg", 0x800, "p/\\xff\\xfe.jpg"),
        (b"/a.jpg", 0, "p/a.jpg"),
        (b"./a.jpg", 0, "p/a.jpg"),
        (b"b//a.jpg", 0, "p/b/a.jpg"),
        (b"b/../a.jpg", 0, "p/a.jpg"),
        (b"a.jpg\0.exe", 0, "p/a.jpg"),
    ],
)
def test_names_equal_the_unpacked_paths(tmp_path: Path, raw: bytes, flags: int, key: str) -> None:
    path = renamed(packed(tmp_path / "p.zip", {"N" * len(raw): b"a"}), raw, flags)
    ref = only_image(path)
    assert ref.key == key
    assert ref.byte_source.read()[0] == b"a"
    assert ZipDirectory(str(path)).find(ref.path.split("::")[0].removeprefix("zip://")) == 0


def test_name_outside_of_the_archive_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "p.zip", {"x/../../a.jpg": b"a"})
    with pytest.raises(ImageError, match="outside of the archive"):
        only_image(path).byte_source.read()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("table", [False, True])
def test_last_file_of_a_repeated_name_counts(tmp_path: Path, table: bool) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for content in (b"first", b"second", b"third"):
            archive.writestr("a.jpg", content)
        archive.writestr("b.jpg", b"b")
        if table:
            archive.writestr("metadata.csv", TABLE + b"a.jpg,0\nb.jpg,0\n")
    assert contents(tmp_path / "p.zip") == {"p/a.jpg": b"third", "p/b.jpg": b"b"}


def test_macos_files_are_ignored(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "__MACOSX/._a.jpg": b"", "b/__MACOSX/._b.jpg": b"", "__MACOSX/metadata.csv": b"?"}
    assert contents(packed(tmp_path / "p.zip", members)) == {"p/a.jpg": b"a"}


@pytest.mark.parametrize(("offset", "content", "why"), [(8, b"\1", "encrypted"), (10, b"\x0c", "packed by method 12")])
def test_unsupported_members_are_refused(tmp_path: Path, offset: int, content: bytes, why: str) -> None:
    path = patched(packed(tmp_path / "p.zip", {"a.jpg": b"a"}), offset, content)
    with pytest.raises(ImageError, match=why):
        only_image(path).byte_source.read()
    table = patched(packed(tmp_path / "t.zip", {"metadata.csv": TABLE + b"a.jpg,0\n"}), offset, content)
    with pytest.raises(SourceError, match=why):
        list(refs(ZipArchive(str(table))))


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path / "p.zip", {"a.jpg": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    patched(path, 24, (1000).to_bytes(4, "little"))  # the directory states a small size
    with pytest.raises(ImageError, match="1,001 bytes, where the archive's directory says 1,000"):
        only_image(path).byte_source.read()
    table = packed(tmp_path / "t.zip", {"metadata.csv": TABLE + bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(SourceError, match="does not unpack"):
        list(refs(ZipArchive(str(patched(table, 24, (1000).to_bytes(4, "little"))))))


@pytest.mark.parametrize("offset", [20, 24])
def test_member_declared_huge_is_refused_unread(tmp_path: Path, offset: int) -> None:
    path = patched(packed(tmp_path / "p.zip", {"a.jpg": b"a"}), offset, b"\xfe\xff\xff\xff")
    with pytest.raises(ImageError, match="too large for an image"):
        only_image(path).byte_source.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_wrong_checksum_is_detected(tmp_path: Path, method: int) -> None:
    path = packed(
        tmp_path / "p.zip", {"a.jpg": b"0123456789" * 9, "t/metadata.csv": TABLE + b"0123456789.jpg,0\n"}, method
    )
    patched(path, 16, b"0123")
    with pytest.raises(ImageError, match="checksum"):
        next(refs(ZipArchive(str(path)))).byte_source.read()


@pytest.mark.parametrize(("damage", "noticed"), [("disk", 1), ("cut", 0.9), ("turned", 0.4)])  # not all bytes matter
def test_damaged_zip_raises_only_own_errors(tmp_path: Path, damage: str, noticed: float) -> None:
    members = {"a.jpg": b"aaaa", "ü.jpg": b"bbbb", "t/metadata.csv": TABLE + b"x.jpg,0\n", "t/x.jpg": b"cccc"}
    whole = packed(tmp_path / "whole.zip", members, zipfile.ZIP_DEFLATED, b"comment").read_bytes()
    path, damaged = tmp_path / "p.zip", 0
    if damage == "disk":
        end = whole.rindex(b"PK\x05\x06")
        tries = [whole[: end + 4] + b"\1\0" + whole[end + 6 :], whole[: end + 8] + b"\1\0" + whole[end + 10 :]]
    elif damage == "cut":
        tries = [whole[:cut] for cut in range(len(whole))]
    else:
        tries = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    for content in tries:
        path.write_bytes(content)
        try:
            for ref in images_in([path]):
                ref.byte_source.read()
        except (SourceError, ImageError):
            damaged += 1
    assert damaged >= len(tries) * noticed


def test_large_table_is_streamed(tmp_path: Path) -> None:
    lines = "".join(f"{i:07d}.jpg,{i % 7}\n" for i in range(80_000)).encode()
    path = packed(tmp_path / "p.zip", {"metadata.csv": TABLE + lines}, zipfile.ZIP_DEFLATED)
    images = list(refs(ZipArchive(str(path))))
    assert (len(images), images[-1].key, images[-1].target) == (80_000, "p/0079999.jpg", 79_999 % 7)


def test_parquet_table_in_a_zip_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{"image_path": "a.jpg", "target": 1}]), out)
    path = packed(tmp_path / "p.zip", {"a.jpg": b"a", "metadata.parquet": out.getvalue()}, zipfile.ZIP_DEFLATED)
    assert rows_of(path) == [("p/a.jpg", 1, 1, "p", "p", "", False)]


def test_times_are_kept_and_invalid_ones_accepted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jpg", (2024, 2, 29, 13, 59, 58)), b"a")
    crc = only_image(tmp_path / "p.zip").byte_source.stat()[1] % 10**9
    assert only_image(tmp_path / "p.zip").byte_source.stat() == (1, 1_709_215_198 * 10**9 + crc)
    for day in (b"\0\0", b"\xff\xff"):
        assert only_image(patched(tmp_path / "p.zip", 14, day)).byte_source.read()[0] == b"a"


def test_only_the_directory_of_a_remote_zip_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "p.zip", {f"{i}.jpg": bytes(10_000) for i in range(100)})
    fetched = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> Any:
            nonlocal fetched
            content = super().read(size)
            fetched += len(content or b"")
            return content

    monkeypatch.setattr(zip_directory, "open_binary", lambda path: Counting(path))
    assert len(list(refs(ZipArchive(str(path))))) == 100
    assert fetched < 90_000  # 64 KiB that may contain the end record, and the directory


def test_index_takes_twelve_bytes_per_member(tmp_path: Path) -> None:
    members = 5000
    directory = ZipDirectory(str(packed(tmp_path / "p.zip", {f"{i:05d}.jpg": b"" for i in range(members)})))
    held = [value for value in vars(directory).values() if isinstance(value, bytes | memoryview)]
    assert sum(memoryview(value).nbytes for value in held) == members * (46 + 9 + 12)


def test_long_local_header_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        result = zipfile.ZipInfo("a.jpg")
        result.extra = struct.pack("<HH", 0x9999, 3000) + bytes(3000)
        archive.writestr(result, b"content")
    assert contents(tmp_path / "p.zip") == {"p/a.jpg": b"content"}


def test_pickled_zip_reads_its_directory_again(tmp_path: Path) -> None:
    source = ZipArchive(str(packed(tmp_path / "p.zip", {"a.jpg": b"a"})))
    before = list(refs(source))
    reduced: tuple[Callable[..., ZipArchive], tuple[str]] = source.__reduce__()
    assert reduced[0](*reduced[1]) == source
    shutil.move(source.path, tmp_path / "q.zip")
    assert [ref.key for ref in refs(ZipArchive(str(tmp_path / "q.zip")))] == ["q/a.jpg"]
    assert all(isinstance(ref.location, ArchiveSpan) for ref in before)
