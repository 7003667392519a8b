"""All kinds of sources give the same rows."""

import csv
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from clipfake.errors import ImageError, SourceError
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index, plan
from clipfake.indexer.sources.archives import zip_archive
from clipfake.indexer.sources.archives.zip_directory import ZipDirectory
from clipfake.indexer.sources.folders import count, expand, images_in
from clipfake.indexer.sources.image_ref import ImageRef
from clipfake.indexer.sources.named_source import NamedSource
from clipfake.simulated.images import simulated
from clipfake.store.store import Store

PICTURES = [simulated(i, i) for i in range(4)]
ARTIFACT = "filename,image_path,target,category\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two folders in the layout of ArtiFact."""
    for name, target in (("afhq", 0), ("pro_gan", 6)):
        lines = ARTIFACT
        for i in range(2):
            path = tmp_path / "data" / name / "x" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURES[2 * (target > 0) + i])
            lines += f"{i}.jpg,x/{i}.jpg,{target},cat\n"
        (tmp_path / "data" / name / "metadata.csv").write_text(lines)
    return tmp_path / "data"


def zipped(folder: Path, out: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(out, "w", method) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, str(path.relative_to(folder.parent)))
    return out


def tarred(out: Path, *members: tuple[str, bytes]) -> Path:
    kinds = {".gz": "w:gz", ".tgz": "w:gz"}
    with tarfile.open(out, kinds.get(out.suffix, "w")) as packed:  # type: ignore[call-overload]
        for name, content in members:
            result = tarfile.TarInfo(name)
            result.size, result.mtime = len(content), 1_700_000_000
            packed.addfile(result, io.BytesIO(content))
    return out


def rows_of(*sources: object) -> list[tuple[object, ...]]:
    return sorted(
        (e.key, e.label, e.target, e.source, e.generator, e.category)
        for e in images_in(sources)  # type: ignore[arg-type]
    )


def indexed(store: Path, *sources: object) -> list[tuple[str, bytes]]:
    new_store = Store.create(store, PlainEncoder().space)
    index(sources, new_store, PlainEncoder())  # type: ignore[arg-type]
    rows = new_store.snapshot().rows
    return sorted((key, digest.tobytes()) for key, digest in zip(rows.keys, rows.digests, strict=True))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_gives_the_rows_of_its_folders(data: Path, tmp_path: Path, method: int) -> None:
    packed = zipped(data, tmp_path / "ArtiFact.zip", method)
    folders = sorted(data.iterdir())
    assert rows_of(packed) == rows_of(*folders) == rows_of(data)
    assert indexed(tmp_path / "a", packed) == indexed(tmp_path / "b", *folders)


def test_indexed_zip_is_not_read_again(data: Path, tmp_path: Path) -> None:
    packed = zipped(data, tmp_path / "d.zip")
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    assert index([packed], store, PlainEncoder()).added == 4
    again = index([packed], store, PlainEncoder())
    assert (again.added, again.known, again.tried) == (0, 4, 0)


def test_missing_and_damaged_members_are_refused(data: Path, tmp_path: Path) -> None:
    (data / "afhq/x/0.jpg").unlink()
    packed = zipped(data, tmp_path / "d.zip", zipfile.ZIP_DEFLATED)
    content = bytearray(packed.read_bytes())
    at = content.rindex(b"data/pro_gan/x/1.jpg") - 46 + 24  # the size stated in the directory
    content[at : at + 4] = (10).to_bytes(4, "little")
    packed.write_bytes(content)
    report = index([packed], Store.create(tmp_path / "s", PlainEncoder().space), PlainEncoder())
    assert report.added == 2
    assert {key: reason.split("; ")[-1] for key, reason in report.skipped} == {
        "afhq/x/0.jpg": f"cannot be read: {packed} holds no data/afhq/x/0.jpg",
        "pro_gan/x/1.jpg": "damaged: 11 bytes, where the archive's directory says 10",
    }


def test_invalid_archive_raises_source_error(tmp_path: Path) -> None:
    for name in ("a.zip", "b.tar"):
        (tmp_path / name).write_text("nothing of the kind, but long enough to look" * 20)
        with pytest.raises(SourceError, match="not a readable"):
            list(images_in([tmp_path / name]))


@pytest.mark.parametrize("name", ["shard-0.tar", "shard-0.tar.gz"])
def test_webdataset_shards_are_read_in_place(tmp_path: Path, name: str) -> None:
    shard = tarred(
        tmp_path / name,
        ("000.jpg", PICTURES[0]),
        ("000.json", json.dumps({"label": "real", "category": "cat"}).encode()),
        ("001.cls", b"1\n"),
        ("001.jpg", PICTURES[1]),
        ("002.jpg", PICTURES[2]),
        ("002.txt", b"a cat on a mat"),
        ("1_fake/003.jpg", PICTURES[3]),
    )
    source = "shard-0"
    assert rows_of(shard) == [
        ("shard-0/000.jpg", 0, -1, source, "", "cat"),
        ("shard-0/001.jpg", 1, 1, source, "shard-0", ""),
        ("shard-0/002.jpg", -1, -1, source, "", ""),
        ("shard-0/1_fake/003.jpg", 1, -1, "shard-0/1_fake", "shard-0", ""),
    ]
    assert len(indexed(tmp_path / "s", shard)) == 4


def test_ranges_of_shards_are_expanded(tmp_path: Path) -> None:
    for i in range(3):
        tarred(tmp_path / f"{i:03d}.tar", (f"{i}.jpg", PICTURES[i]))
    assert [source.name for source in expand([f"{tmp_path}/{{000..002}}.tar"])] == ["000", "001", "002"]


def test_table_in_a_tar_read_once_must_come_first(data: Path, tmp_path: Path) -> None:
    inside = [("data/afhq/x/0.jpg", PICTURES[0]), ("data/afhq/x/1.jpg", PICTURES[1])]
    metadata = ("data/afhq/metadata.csv", (data / "afhq/metadata.csv").read_bytes())
    for name in ("first.tar", "first.tar.gz"):
        assert rows_of(tarred(tmp_path / name, metadata, *inside)) == rows_of(data / "afhq")
    assert rows_of(tarred(tmp_path / "last.tar", *inside, metadata)) == rows_of(data / "afhq")
    with pytest.raises(SourceError, match="pack the table first"):
        rows_of(tarred(tmp_path / "last.tar.gz", *inside, metadata))


@pytest.mark.parametrize("kind", ["metadata.csv", "metadata.jsonl"])
def test_hugging_face_image_folders_are_listed(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "hf"
    rows = [{"file_name": "0.jpg", "label": "real"}, {"file_name": "sub/1.jpg", "label": "fake"}]
    for split in ("train", "test"):
        for row in rows:
            path = folder / split / row["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURES[0])
        with (folder / split / kind).open("w") as file:
            if kind.endswith("csv"):
                writer = csv.DictWriter(file, ["file_name", "label"])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    assert rows_of(folder) == [
        ("hf/test/0.jpg", 0, -1, "hf/test", "", ""),
        ("hf/test/sub/1.jpg", 1, -1, "hf/test", "hf", ""),
        ("hf/train/0.jpg", 0, -1, "hf/train", "", ""),
        ("hf/train/sub/1.jpg", 1, -1, "hf/train", "hf", ""),
    ]


def test_nature_and_ai_folders_are_labels(tmp_path: Path) -> None:
    for name in ("glide/imagenet_glide/train/nature/a.jpg", "glide/imagenet_glide/train/ai/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(PICTURES[0])
    assert [(e.label, e.generator) for e in images_in([tmp_path / "glide"])] == [(1, "imagenet_glide"), (0, "")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_table_of_paths_and_labels_is_a_source(data: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {"path": "data/afhq/x/0.jpg", "label": "real", "category": "cat"},
        {"path": str(data / "pro_gan/x/0.jpg"), "label": "fake", "category": "cat"},
        {"path": "data/afhq/x/0.jpg", "label": "real", "category": "cat"},
        {"path": "x.jpg", "label": "perhaps", "category": ""},
    ]
    at = tmp_path / f"mine.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), at)
    elif kind == "csv":
        with at.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        at.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = list(images_in([at]))
    assert [(image.label, bool(image.refused)) for image in images] == [(0, False), (1, False), (-1, True), (-1, True)]
    assert len(indexed(tmp_path / "s", at)) == 2


def test_table_without_paths_raises_source_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("colour,label\nred,real\n")
    with pytest.raises(SourceError, match="no column image_path"):
        list(images_in([tmp_path / "t.csv"]))


def test_urls_are_sources(data: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="the extra `cloud` is not installed")
    memory = fsspec.filesystem("memory")
    memory.put(str(data), "/bucket/data", recursive=True)
    memory.pipe("/bucket/d.zip", zipped(data, tmp_path / "d.zip").read_bytes())
    memory.pipe("/bucket/s.tar", tarred(tmp_path / "s.tar", ("1_fake/a.jpg", PICTURES[0])).read_bytes())
    memory.pipe("/bucket/t.csv", b"path,label\nmemory://bucket/data/afhq/x/0.jpg,real\n")
    assert rows_of("memory://bucket/data") == rows_of("memory://bucket/d.zip") == rows_of(data)
    local = indexed(tmp_path / "a", data)
    assert indexed(tmp_path / "b", "memory://bucket/data") == local
    assert indexed(tmp_path / "c", "memory://bucket/d.zip") == local
    assert len(indexed(tmp_path / "d", "memory://bucket/s.tar", "memory://bucket/t.csv")) == 2
    with pytest.raises(SourceError):
        list(images_in(["memory://bucket/nothing"]))


def test_file_names_that_are_not_utf8_stay_distinct(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for raw in (b"\xff.jpg", b"\xfe.jpg", "ü.jpg".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + raw)).write_bytes(PICTURES[0])
    assert [key for key, _ in indexed(tmp_path / "s", folder)] == ["p/\\xfe.jpg", "p/\\xff.jpg", "p/ü.jpg"]


def test_names_in_tables_and_tars_need_not_be_utf8(tmp_path: Path) -> None:
    folder, name = tmp_path / "p", os.fsdecode(b"\xff.jpg")
    folder.mkdir()
    (folder / name).write_bytes(PICTURES[0])
    (folder / "metadata.csv").write_bytes(ARTIFACT.encode() + b"\xff.jpg,\xff.jpg,0,caf\xe9\n")
    [ref] = images_in([folder])
    assert (ref.key, ref.category) == ("p/\\xff.jpg", "café")
    assert [key for key, _ in indexed(tmp_path / "s", folder)] == [ref.key]
    assert [key for key, _ in indexed(tmp_path / "c", tarred(tmp_path / "t.tar", (name, PICTURES[0])))] == [
        "t/\\xff.jpg"
    ]


def test_mutual_links_are_not_followed_forever(tmp_path: Path) -> None:
    for folder, target, name in (("a", "b", "x"), ("b", "a", "y")):
        (tmp_path / "p" / folder).mkdir(parents=True)
        (tmp_path / "p" / folder / f"{folder}.png").write_bytes(b"")
        (tmp_path / "p" / folder / name).symlink_to(tmp_path / "p" / target)
    keys = [ref.key for ref in images_in([tmp_path / "p"])]
    assert sorted(keys) == ["p/a/a.png", "p/a/x/b.png", "p/b/b.png", "p/b/y/a.png"]


def test_link_loops_are_skipped_and_other_links_followed(tmp_path: Path) -> None:
    (tmp_path / "p/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.jpg").write_bytes(PICTURES[0])
    (tmp_path / "p/deep/loop").symlink_to(tmp_path / "p")
    (tmp_path / "p/deep/self").symlink_to(tmp_path / "p/deep")
    (tmp_path / "p/other").symlink_to(tmp_path / "outside")
    (tmp_path / "p/dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    followed = expand([tmp_path / "p"], follow_links=True)
    assert [e.key for e in images_in(followed)] == ["p/dead.jpg", "p/other/a.jpg"]


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        ImageRef("k", str(tmp_path / "pipe.jpg")).byte_source.read()


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "giant.jpg").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file that takes no space
    with pytest.raises(ImageError, match="too large"):
        ImageRef("k", str(tmp_path / "giant.jpg")).byte_source.read()


def test_listing_streams(tmp_path: Path) -> None:
    lines = "".join(f"{i}.jpg,x/{i}.jpg,0,cat\n" for i in range(20_000))
    (tmp_path / "big").mkdir()
    (tmp_path / "big/metadata.csv").write_text(ARTIFACT + lines + "this,line,makes,no,sense\n")
    images = iter(images_in([tmp_path / "big"]))
    assert next(images).key == "big/x/0.jpg"
    assert plan([tmp_path / "big"]).listed == 20_000


def test_count_equals_the_listing(data: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    (data / "loose/real").mkdir(parents=True)
    (data / "loose/real/a.PNG").touch()
    (data / "loose/real/notes.txt").touch()
    lines = [f"{i}.jpg,real\n" for i in range(300)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(lines).rstrip("\n"))  # the last line does not end
    (tmp_path / "t2.jsonl").write_text("".join(f'{{"path": "{i}.jpg"}}\n' for i in range(5)))
    parquet.write_table(pyarrow.table({"path": ["a.jpg", "b.jpg"]}), tmp_path / "t3.parquet")
    sources: list[Any] = [data, zipped(data, tmp_path / "d.zip"), *(tmp_path / f"t{n}" for n in (".csv", "2.jsonl"))]
    sources += [tmp_path / "t3.parquet", NamedSource(expand([data])[0], "mine", 1)]
    for source, number in zip(sources, (5, 5, 300, 5, 2, 5), strict=True):
        assert count([source]) == number == len(rows_of(source))
    assert count([data, tmp_path / "t.csv"]) == 305


def test_tar_is_not_counted(data: Path, tmp_path: Path) -> None:
    shard = tarred(tmp_path / "s.tar", ("a.jpg", PICTURES[0]))
    assert count([shard]) is None
    assert count([data, shard]) is None
    with pytest.raises(SourceError, match="does not exist"):
        count([tmp_path / "nowhere"])


def test_counted_and_listed_zip_is_read_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Noted(ZipDirectory):
        def __init__(self, path: str) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(zip_archive, "ZipDirectory", Noted)
    sources = expand([zipped(data, tmp_path / "d.zip")])
    assert count(sources) == len(list(images_in(sources))) == 4
    assert len(read) == 1


def test_brackets_in_a_folder_name_are_literal(tmp_path: Path) -> None:
    folder = tmp_path / "br[ab]ck"
    folder.mkdir()
    assert [source.path for source in expand([folder])] == [str(folder)]
