"""Tar archives are listed as by Python's tarfile, and damage is reported."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from clipfake.errors import ImageError, SourceError
from clipfake.indexer.sources import image_ref
from clipfake.indexer.sources.archives.tar_archive import TarArchive
from clipfake.indexer.sources.folders import images_in, listing
from clipfake.indexer.sources.image_ref import PassedOver

NAMES = ["a.jpg", "d/b.jpg", "x" * 96 + ".jpg", "e/" * 60 + "c.jpg", "ü.jpg", os.fsdecode(b"\xff.jpg"), "./f.jpg"]


def packed(path: Path, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for i, name in enumerate(NAMES):
            result = tarfile.TarInfo(name)
            result.size, result.mtime = i, 1_700_000_000 + i + (0.5 if form == tarfile.PAX_FORMAT else 0)
            result.uid = 0 if form == tarfile.USTAR_FORMAT else 1 << 22  # more than octal digits hold
            archive.addfile(result, io.BytesIO(bytes([65 + i]) * i))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_members_are_listed_with_content_and_time(tmp_path: Path, form: int, name: str) -> None:
    path = packed(tmp_path / name, form, "w:gz" if name.endswith("gz") else "w")
    with tarfile.open(path) as archive:
        expected = [(m.size, int(m.mtime * 10**9)) for m in archive if m.isfile()]
    images = list(images_in([TarArchive(str(path))]))
    assert [image.key for image in images] == [f"t/{n.removeprefix('./')}".replace("\udcff", "\\xff") for n in NAMES]
    assert [image.byte_source.stat() for image in images] == expected
    assert PassedOver("links to other members of an archive", 1, f"{path}/link.jpg") in listing([path])
    assert [image.byte_source.read()[0] for image in images] == [bytes([65 + i]) * i for i in range(len(NAMES))]


def test_damaged_tar_raises_only_source_errors(tmp_path: Path) -> None:
    whole, path, damaged = packed(tmp_path / "whole.tar").read_bytes(), tmp_path / "t.tar", 0
    tries = [whole[:cut] for cut in range(0, len(whole), 97)]
    tries += [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(512, 4096, 5)]
    for content in tries:
        path.write_bytes(content)
        try:
            damaged += sum(1 for image in images_in([path]) if image.byte_source.read()) != len(NAMES)
        except (SourceError, ImageError):
            damaged += 1
    assert damaged > len(tries) / 4


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_huge_tar_member_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = packed(tmp_path / name, mode="w:gz" if name.endswith("gz") else "w")
    monkeypatch.setattr(image_ref, "BYTES_LIMIT", 3)
    small, large = list(images_in([TarArchive(str(path))]))[3:5]
    assert small.byte_source.read()[0] == b"DDD"
    with pytest.raises(ImageError, match="too large for an image"):
        large.byte_source.read()


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        result = tarfile.TarInfo("a.jpg")
        result.pax_headers = {"GNU.sparse.size": "9", "GNU.sparse.map": "0,1,8,1", "GNU.sparse.numblocks": "2"}
        result.size = 2
        archive.addfile(result, io.BytesIO(b"ab"))
    [image] = images_in([tmp_path / "t.tar"])
    with pytest.raises(ImageError, match="sparse"):
        image.byte_source.read()
