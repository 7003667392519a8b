"""What folders, tables and archives of strangers mean: the right label, a refusal, or a line that says so."""

import gzip
import io
import json
import re
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from clipfake.errors import SourceError
from clipfake.indexer.embedding import image_refs
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index, plan
from clipfake.indexer.sample import sampled
from clipfake.indexer.sources.file_names import SUFFIXES, FileKind, file_kind
from clipfake.indexer.sources.folders import expand, images_in, listing
from clipfake.indexer.sources.image_ref import ImageRef, PassedOver
from clipfake.indexer.sources.tables.columns import ColumnNames
from clipfake.simulated.images import simulated
from clipfake.store.store import Store
from PIL import Image

PICTURE, OTHER = simulated(0, 0), simulated(1, 1)


def tree(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def zipped(path: Path, files: Mapping[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo()
            info.filename = name  # as it is, with backslashes
            archive.writestr(info, content)
    return path


def tarred(path: Path, files: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def labels(*sources: Any, **columns: str) -> dict[str, int]:
    named = ColumnNames(tuple(columns.items()))
    return {ref.key: ref.label for ref in images_in(expand(sources, named)) if not ref.refused}


def refusals(*sources: Any) -> dict[str, str]:
    return {ref.key: ref.refused for ref in images_in(expand(sources)) if ref.refused}


def passed_over(*sources: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for listed in listing(expand(sources)):
        if isinstance(listed, PassedOver):
            counts[listed.reason] = counts.get(listed.reason, 0) + listed.files
    return counts


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("fake/nature", (1, "ds/fake/nature", "ds")),
        ("fake/sd14/original", (1, "ds/fake/sd14", "sd14")),
        ("real/synthetic", (0, "ds/real/synthetic", "")),
        ("nature/fake", (1, "ds/nature/fake", "ds")),
        ("ai/1_fake", (1, "ds/ai/1_fake", "ds")),
        ("FAKE/train/00017/sdxl", (1, "ds/FAKE/train/00017/sdxl", "sdxl")),
        ("real/train/00017", (0, "ds/real", "")),
        ("train/nature", (0, "ds/train/nature", "")),
        ("progan/1_fake/1_fake", (1, "ds/progan/1_fake/1_fake", "progan")),
        ("holiday", (-1, "ds", "")),
    ],
)
def test_folder_that_splits_the_data_labels(tmp_path: Path, folder: str, expected: tuple[int, str, str]) -> None:
    ds = tree(tmp_path / "ds", {f"{folder}/a.jpg": PICTURE})
    for source in (ds, zipped(tmp_path / "ds.zip", {f"{folder}/a.jpg": PICTURE})):
        [ref] = images_in([source])
        assert (ref.label, ref.source, ref.generator) == expected


@pytest.mark.parametrize("folder", ["fake/real", "0_real/1_fake", "nature/ai", "real/x/fake", "original/generated"])
def test_contradicting_folders_are_refused(tmp_path: Path, folder: str) -> None:
    files = {f"{folder}/a.jpg": PICTURE, "real/b.jpg": PICTURE}
    sources = tree(tmp_path / "ds", files), zipped(tmp_path / "dz.zip", files), tarred(tmp_path / "dt.tar", files)
    for source in sources:
        assert list(labels(source).values()) == [0]
        [reason] = refusals(source).values()
        assert "contradict" in reason and all(f"{word}/" in reason for word in folder.split("/") if word != "x")


def test_folder_above_the_named_ones_labels(tmp_path: Path) -> None:
    tree(tmp_path / "tree", {"real/coco/a.jpg": PICTURE, "fake/sd14/nature/a.jpg": PICTURE, "ai/x/b.jpg": PICTURE})
    zipped(tmp_path / "tree/fake/glide.zip", {"original/a.jpg": PICTURE})
    sources = expand([f"{tmp_path}/tree/real/*", f"{tmp_path}/tree/fake/*"])
    assert {(ref.key, ref.label, ref.source, ref.generator) for ref in images_in(sources)} == {
        ("coco/a.jpg", 0, "real/coco", ""),
        ("sd14/nature/a.jpg", 1, "fake/sd14", "sd14"),
        ("glide/original/a.jpg", 1, "fake/glide", "glide"),
    }
    assert labels(tmp_path / "tree/ai/x") == {"x/b.jpg": -1}  # a word that may mean anything, outside of the folder


def test_generator_column_gives_a_source_each(tmp_path: Path) -> None:
    table = "file_name,label,generator\na.jpg,fake,sd14\nb.jpg,fake,glide\nc.jpg,real,\n"
    tree(tmp_path / "ds", {"metadata.csv": table, **dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), PICTURE)})
    tree(tmp_path, {"list.csv": table.replace("a.jpg", "ds/a.jpg")})
    assert {(r.source, r.generator) for r in images_in([tmp_path / "ds"])} == {
        ("ds/sd14", "sd14"),
        ("ds/glide", "glide"),
        ("ds", ""),
    }
    assert {r.source for r in images_in([tmp_path / "list.csv"])} == {"list/sd14", "list/glide", "list"}


def test_suffixes_are_those_that_pillow_reads() -> None:
    from clipfake.indexer.decoding.image import FORMATS

    Image.init()
    pillow = {suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS}
    assert pillow - {".mpo", ".jpc"} <= {*SUFFIXES} | {".jps"}


@pytest.mark.parametrize("name", ["x", "x.jpg_large", "x.", "x.JFIF", "x.pjpeg", "scan.001", "x.jpg~orig"])
def test_image_of_any_name_is_listed(tmp_path: Path, name: str) -> None:
    ds = tree(tmp_path / "ds", {f"real/{name}": PICTURE})
    assert labels(ds) == {f"ds/real/{name}": 0}
    assert labels(zipped(tmp_path / "d.zip", {name: PICTURE})) == {f"d/{name}": -1}
    for tar in (tarred(tmp_path / "t.tar", {name: PICTURE}), tarred(tmp_path / "t.tar.gz", {name: PICTURE})):
        [ref] = images_in([tar])
        assert ref.key == f"t/{name}" and ref.byte_source.read()[0] == PICTURE


def test_files_that_are_not_images_are_counted(tmp_path: Path) -> None:
    raw = b"II*\0" + bytes(60)  # the raw file of a camera begins like a TIFF
    files = {
        "a.jpg": PICTURE,
        "b.cr2": raw,
        "c.psd": b"8BPS",
        "d.jpg.part": PICTURE,
        "e.zip": b"PK",
        "labels.csv": "file_name,label\na.jpg,fake\n",
        "f.bin2": b"x",
        "g": raw[:1],
        "notes.txt": "x",
        "h.mov": b"x",
    }
    expected = {
        FileKind.unread: 3,
        FileKind.unfinished: 1,
        FileKind.archive: 1,
        FileKind.table: 1,
        FileKind.other: 2,
    }
    for source in (tree(tmp_path / "ds", files), zipped(tmp_path / "z.zip", files), tarred(tmp_path / "t.tar", files)):
        assert passed_over(source) == expected
        assert len(labels(source)) == 1


FOREIGN = (
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    ".thumbnails/a.jpg",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    ".Trash-1000/files/a.jpg",
    "#recycle/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "__MACOSX/real/._a.jpg",
    "._b.jpg",
    ".@__thumb/s100a.jpg",
    "@Recycle/a.jpg",
    "lost+found/a.jpg",
    "System Volume Information/a.jpg",
    "x/@eaDir/metadata.csv",
    ".DS_Store",
    "Thumbs.db",
)


def test_files_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    files = {"real/a.jpg": PICTURE, **dict.fromkeys(FOREIGN, PICTURE)}
    for source in (tree(tmp_path / "ds", files), zipped(tmp_path / "z.zip", files), tarred(tmp_path / "t.tar", files)):
        assert list(labels(source).values()) == [0]
        assert passed_over(source) == {FileKind.foreign: len(FOREIGN)}


def test_images_that_no_table_names_are_counted(tmp_path: Path) -> None:
    files = {
        "metadata.csv": "image_path,target\nx/a.jpg,0\nx/gone.jpg,0\n",
        "x/a.jpg": PICTURE,
        "x/b.jpg": PICTURE,
        "more/metadata.csv": "image_path,target\nx/a.jpg,6\n",
        "more/x/a.jpg": PICTURE,
        "more/c.jpg": PICTURE,
        "@eaDir/x.jpg": PICTURE,
    }
    files = {f"ds/{name}": content for name, content in files.items()}
    tree(tmp_path, files)
    for source in (tmp_path / "ds", zipped(tmp_path / "z.zip", files), tarred(tmp_path / "t.tar", files)):
        images = {r.key: (r.label, r.source) for r in images_in([source]) if not r.refused and "gone" not in r.key}
        assert images == {"ds/x/a.jpg": (0, "ds"), "more/x/a.jpg": (1, "more")}
        not_named, foreign = sorted(passed_over(source).items())[::-1] if source.name != "ds" else (("", 2), ("", 1))
        assert sorted(passed_over(source).values()) == [1, 2] and not_named[1] + foreign[1] == 3


def test_case_of_a_tables_name_does_not_matter(tmp_path: Path) -> None:
    files = {"d/Metadata.CSV": "file_name,label\na.jpg,fake\n", "d/a.jpg": PICTURE}
    for source in (tree(tmp_path / "ds", files), zipped(tmp_path / "z.zip", files), tarred(tmp_path / "t.tar", files)):
        assert list(labels(source).values()) == [1]


def test_row_without_a_file_in_a_tar_is_refused(tmp_path: Path) -> None:
    table = "image_path,target\nx/a.jpg,0\nx/gone.jpg,1\nx/a.jpg,1\n"
    tar = tarred(tmp_path / "t.tar", {"ds/metadata.csv": table, "ds/x/a.jpg": PICTURE})
    assert labels(tar) == {"ds/x/a.jpg": 0}
    reasons = [ref.refused for ref in images_in([tar]) if ref.refused]
    assert ["was listed before" in reasons[0], "holds no such file" in reasons[1]] == [True, True]


def test_both_tables_of_a_folder_are_read(tmp_path: Path) -> None:
    files = {
        "metadata.csv": "file_name,label\na.jpg,real\n",
        "metadata.jsonl": '{"file_name": "b.jpg", "label": "fake"}\n{"file_name": "a.jpg", "label": "fake"}\n',
        "a.jpg": PICTURE,
        "b.jpg": PICTURE,
    }
    for source in (tree(tmp_path / "ds", files), zipped(tmp_path / "ds.zip", files)):
        assert labels(source) == {"ds/a.jpg": 0, "ds/b.jpg": 1}
        assert [reason.split(": ")[-1] for reason in refusals(source).values()] == ["a.jpg was listed before"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_tables_of_any_encoding_and_separator_are_read(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [("Image_Path", " Target ", "category"), ("bilder\\é.jpg", "1.0", "cat"), ("bilder/b.jpg", "0", "dog")]
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    files: dict[str, bytes | str] = {"bilder/é.jpg": PICTURE, "bilder/b.jpg": PICTURE}
    ds = tree(tmp_path / "ds", {"metadata.csv": text.encode(encoding), **files})
    expected = {"ds/bilder/é.jpg": 1, "ds/bilder/b.jpg": 0}
    assert labels(ds) == expected
    inside = {f"ds/{name}": content for name, content in files.items()} | {"ds/metadata.csv": text.encode(encoding)}
    assert labels(zipped(tmp_path / "z.zip", inside)) == labels(tarred(tmp_path / "t.tar", inside)) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_found(tmp_path: Path, form: str) -> None:
    on_disk = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "zoë.jpg")
    table = f"file_name,label\n{unicodedata.normalize(form, 'zoë.jpg')},fake\n"  # type: ignore[arg-type]
    files = {"metadata.csv": table.encode(), on_disk: PICTURE}
    for source in (tree(tmp_path / "ds", files), zipped(tmp_path / "d.zip", files), tarred(tmp_path / "t.tar", files)):
        assert list(labels(source).values()) == [1]
        [ref] = images_in([source])
        assert ref.byte_source.read()[0] == PICTURE
    tree(tmp_path, {"list.csv": table.replace(",fake", ",real").replace("zo", "ds/zo").encode()})
    [ref] = images_in([tmp_path / "list.csv"])
    assert ref.byte_source.read()[0] == PICTURE


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"target": 1.0}, 1),
        ({"target": "0.0"}, 0),
        ({"target": "fake"}, 1),
        ({"label": "1.00"}, 1),
        ({"label": None}, -1),
        ({"label": float("nan")}, -1),
        ({"label": "Real "}, 0),
        ({"target": "1.5"}, None),
        ({"target": "0", "label": "fake"}, None),
        ({"target": "3", "label": "cat"}, 1),
        ({"target": "3", "label": "7"}, 1),
    ],
)
def test_labels_of_rows(tmp_path: Path, row: dict[str, Any], label: int | None) -> None:
    from clipfake.indexer.sources.labels import label_from_row

    outcome = label_from_row(row)
    assert (None if isinstance(outcome, str) or outcome is None else outcome[0]) == label


@pytest.mark.parametrize(
    ("headings", "columns", "label"),
    [
        ("filename,label", {}, 1),
        ("FileName,LABEL", {}, 1),
        ("img_path,target", {}, 1),
        ("picture,class", {"file_name": "picture", "label": "class"}, 1),
        ("picture,class", {"image_path": "picture", "target": "class"}, 1),
        ("file_name,label", {"target": "label"}, 1),
    ],
)
def test_headings_of_tables(tmp_path: Path, headings: str, columns: dict[str, str], label: int) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": f"{headings}\na.jpg,1\n", "a.jpg": PICTURE})
    assert labels(ds, **columns) == {"ds/a.jpg": label}
    tree(tmp_path, {"list.csv": f"{headings}\nds/a.jpg,1\n"})
    assert labels(tmp_path / "list.csv", **columns) == {"list/ds/a.jpg": label}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,label,label\na.jpg,real,fake\n", "2 columns named label"),
        ("file_name,label, Label\na.jpg,real,fake\n", "2 columns named label"),
        ('file_name,label\na.jpg,"fake\nb.jpg,real\n', "a quote in line 2 is not closed"),
        ("file_name,file_name,label\na.jpg,b.jpg,fake\n", "2 columns named file_name"),
        ("colour,label\nred,fake\n", "no column image_path (it has colour, label"),
    ],
)
def test_ambiguous_tables_are_refused(tmp_path: Path, content: str, message: str) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": content, "a.jpg": PICTURE})
    with pytest.raises(SourceError, match=re.escape(message)):
        labels(ds)
    (ds / "metadata.csv").unlink()
    tree(ds, {"metadata.jsonl": '{"file_name": "a.jpg", "label": "real", "label": "fake"}\n'})
    with pytest.raises(SourceError, match="2 columns named label"):
        labels(ds)


@pytest.mark.parametrize(
    "content",
    [
        'file_name,"note; of; many; parts",label\na.jpg,x;y,fake\n',
        "\n\r\nfile_name,label\na.jpg,fake\n",
        "sep=;\nfile_name;label\na.jpg;fake\n",
        'file_name,label,caption\na.jpg,fake,"two\n\nlines"\n',
        'file_name,label,caption\na.jpg,fake,a "cat"s\n',
        'file_name,label,caption\na.jpg,fake,"two\nlines" and more\n',
    ],
)
def test_unusual_csv_is_read(tmp_path: Path, content: str) -> None:
    assert labels(tree(tmp_path / "ds", {"metadata.csv": content, "a.jpg": PICTURE})) == {"ds/a.jpg": 1}


def test_row_with_an_invalid_label_names_its_image(tmp_path: Path) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": "file_name,label\na.jpg,maybe\n", "a.jpg": PICTURE})
    assert len(refusals(ds)) == 1 and passed_over(ds) == {}


def test_unknown_column_is_refused(tmp_path: Path) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": "file_name,label\na.jpg,1\n", "a.jpg": PICTURE})
    with pytest.raises(SourceError, match="no column class"):
        labels(ds, label="class")
    for text in ("label", "label=", "colour=x", "label=a,label=b"):
        with pytest.raises(ValueError, match=r"FIELD=COLUMN|two columns"):
            ColumnNames.parse(text)


CARD = {"features": {"label": {"names": ["fake", "real"], "_type": "ClassLabel"}}}
README = """---
license: mit
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': fake
          '1': real
---
# A data set
"""


@pytest.mark.parametrize(
    "cards",
    [
        {"dataset_info.json": json.dumps(CARD)},
        {"dataset_infos.json": json.dumps({"default": CARD})},
        {"README.md": README},
        {"../README.md": README},
        {"README.md": README.replace("\n", "\r\n")},
        {"../README.md": README, "dataset_info.json": json.dumps(CARD)},
    ],
)
def test_class_names_of_a_data_set_card_are_used(tmp_path: Path, cards: dict[str, str]) -> None:
    table = {"metadata.csv": "file_name,Label\na.jpg,0\nb.jpg,1.0\nc.jpg,\n"}
    ds = tree(tmp_path / "repo/ds", {**table, **cards, **dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), PICTURE)})
    assert labels(ds) == {"ds/a.jpg": 1, "ds/b.jpg": 0, "ds/c.jpg": -1}


@pytest.mark.parametrize(
    "cards",
    [
        {"README.md": README.replace("fake", "{")},
        {"dataset_info.json": "{"},
        {
            "dataset_infos.json": json.dumps(
                {"a": CARD, "b": json.loads(json.dumps(CARD).replace('"fake", "real"', '"real", "fake"'))}
            )
        },
        {
            "dataset_info.json": json.dumps(
                {"features": {"label": {"feature": CARD["features"]["label"], "_type": "Sequence"}}}
            )
        },
        {"README.md": README, "dataset_info.json": json.dumps(CARD).replace('"fake", "real"', '"real", "fake"')},
    ],
)
def test_numbers_without_a_usable_card_are_refused(tmp_path: Path, cards: dict[str, str]) -> None:
    table = {"metadata.csv": "file_name,label\na.jpg,0\nb.jpg,real\n"}
    ds = tree(tmp_path / "ds", {**table, **cards, "a.jpg": PICTURE, "b.jpg": PICTURE})
    assert labels(ds) == {"ds/b.jpg": 0}
    assert "a class whose name is not known" in refusals(ds)["ds/a.jpg"]


def test_column_in_which_1_means_real_is_refused(tmp_path: Path) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": "file_name,is_real\na.jpg,1\n", "a.jpg": PICTURE})
    with pytest.raises(SourceError, match="seems to mean real"):
        labels(ds, label="is_real")


KAGGLE = "id,label,label_str,path\n0,1,real,train/real/a.jpg\n1,0,fake,train/fake/b.jpg\n2,1,real,x/c.jpg\n"


def test_numbers_that_contradict_a_class_folder_are_refused(tmp_path: Path) -> None:
    files = {"train/real/a.jpg": PICTURE, "train/fake/b.jpg": OTHER, "x/c.jpg": PICTURE}
    tree(tmp_path, {**files, "list.csv": KAGGLE, "ds/metadata.csv": KAGGLE, **{f"ds/{n}": c for n, c in files.items()}})
    tar = tarred(tmp_path / "t.tar", {"real/a.jpg": PICTURE, "real/a.cls": "1", "fake/b.jpg": OTHER, "fake/b.cls": "1"})
    assert labels(tmp_path / "list.csv") == {"list/x/c.jpg": 1}
    assert labels(tmp_path / "ds") == {"ds/x/c.jpg": 1}
    assert labels(tar) == {"t/fake/b.jpg": 1}
    assert "means fake, but the image is below real/" in refusals(tar)["t/real/a.jpg"]
    tree(tmp_path, {"words.csv": KAGGLE.replace(",1,real", ",fake,x").replace(",0,fake", ",real,x")})
    assert labels(tmp_path / "words.csv") == {  # words are corrections
        "words/train/real/a.jpg": 1,
        "words/train/fake/b.jpg": 0,
        "words/x/c.jpg": 1,
    }


def test_row_with_more_values_than_headings_is_refused(tmp_path: Path) -> None:
    table = "file_name,prompt,label\na.jpg,a photo, real, 4k,fake\nb.jpg,a photo,fake,,\n"
    ds = tree(tmp_path / "ds", {"metadata.csv": table, "a.jpg": PICTURE, "b.jpg": PICTURE})
    assert labels(ds) == {"ds/b.jpg": 1} and "5 values for 3 columns" in refusals(ds)["ds/a.jpg"]


def test_captions_are_not_labels(tmp_path: Path) -> None:
    files = {"fake/a.jpg": PICTURE, "fake/a.txt": "nature", "b.jpg": PICTURE, "b.txt": "Original", "c.jpg": PICTURE}
    files |= {"c.txt": "0", "d.jpg": PICTURE, "d.txt": "real", "fake/e.jpg": PICTURE, "fake/e.txt": "real"}
    tar = tarred(tmp_path / "t.tar", files)
    assert labels(tar) == {"t/fake/a.jpg": 1, "t/b.jpg": -1, "t/c.jpg": -1, "t/d.jpg": 0}
    assert list(refusals(tar)) == ["t/fake/e.jpg"]


def test_unreadable_sidecars_are_refused(tmp_path: Path) -> None:
    large = json.dumps({"workflow": "x" * 3_000_000, "Label": "fake"})
    files = {"a.jpg": PICTURE, "a.json": large, "b.jpg": PICTURE, "b.json": '{"label": '}
    files |= {
        "c.jpg": PICTURE,
        "c.json": sidecar("fake").encode("utf-16"),
        "d.jpg": PICTURE,
        "d.json": '{"label": NaN}',
    }
    tar = tarred(tmp_path / "t.tar", files)
    assert labels(tar) == {"t/a.jpg": 1, "t/c.jpg": 1, "t/d.jpg": -1}
    assert "not valid JSON" in refusals(tar)["t/b.jpg"]


def test_sidecars_sorted_by_suffix_are_joined(tmp_path: Path) -> None:
    files = {"a.b.jpg": PICTURE, "c.d.jpg": OTHER, "x.json": "{}"}
    files |= {"a.b.json": json.dumps({"label": "fake", "generator": "sd14", "category": "cat"}), "y.jpg": PICTURE}
    files |= {"a.b.cls": "1", "z.jpg": PICTURE, "c.d.json": sidecar("fake"), "q.jpg": PICTURE, "c.d.cls": "0"}
    tar = tarred(tmp_path / "t.tar", files)
    [ref] = [ref for ref in images_in([tar]) if ref.key == "t/a.b.jpg"]
    assert (ref.label, ref.generator, ref.category) == (1, "sd14", "cat")
    assert "contradict" in refusals(tar)["t/c.d.jpg"]


def test_class_names_beside_an_archive_are_used(tmp_path: Path) -> None:
    table = {"ds/metadata.csv": "file_name,label\na.jpg,0\n", "ds/a.jpg": PICTURE}
    for files in (table | {"ds/README.md": README}, {"README.md": README} | table):
        assert (
            labels(zipped(tmp_path / "z.zip", files)) == labels(tarred(tmp_path / "z.tar", files)) == {"z/ds/a.jpg": 1}
        )
    tree(tmp_path, {"README.md": README})
    cls = {"a.jpg": PICTURE, "a.cls": "0", "b.jpg": PICTURE, "b.json": '{"label": 1}'}
    assert labels(zipped(tmp_path / "z.zip", table)) == {"z/ds/a.jpg": 1}
    assert labels(tarred(tmp_path / "t.tar", cls)) == {"t/a.jpg": 1, "t/b.jpg": 0}


def test_tables_of_a_tar_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    files = {
        "ds/metadata.csv": "file_name,label\nlow/a.jpg,real\n",
        "ds/metadata.jsonl": '{"file_name": "b.jpg", "label": "fake"}\n',
        "ds/low/metadata.csv": "file_name,label\na.jpg,fake\nc.jpg,fake\n",
        **dict.fromkeys(("ds/low/a.jpg", "ds/b.jpg", "ds/low/c.jpg"), PICTURE),
    }
    tree(tmp_path / "x", files)
    sources = tmp_path / "x/ds", zipped(tmp_path / "ds.zip", files), tarred(tmp_path / "ds.tar", files)
    for source in sources:
        by_name = {key.rpartition("/")[2]: label for key, label in labels(source).items()}
        assert by_name == {"a.jpg": 0, "b.jpg": 1, "c.jpg": 1}
        assert len(refusals(source)) == 1


def test_joined_and_incomplete_tars_are_noticed(tmp_path: Path) -> None:
    first = tarred(tmp_path / "a.tar", {"a.jpg": PICTURE}).read_bytes()
    second = tarred(tmp_path / "b.tar", {"b.jpg": PICTURE}).read_bytes()
    (tmp_path / "joined.tar").write_bytes(first + second)
    with pytest.raises(SourceError, match="goes on after its end"):
        labels(tmp_path / "joined.tar")
    (tmp_path / "cut.tar").write_bytes(first.rstrip(b"\0").ljust(-(-len(first.rstrip(b"\0")) // 512) * 512, b"\0"))
    (tmp_path / "zeros.tar").write_bytes(first + bytes(3 << 20))
    assert [list(passed_over(tmp_path / name)) for name in ("a.tar", "cut.tar", "zeros.tar")] == [
        [],
        ["archives without an end mark, which may be incomplete"],
        ["archives that end in many zeros, which may be an incomplete download"],
    ]


def test_one_file_in_several_spellings_is_listed_once(tmp_path: Path) -> None:
    tree(tmp_path, {"a/b.jpg": PICTURE})
    names = ("a/b.jpg", "./a/b.jpg", "a\\b.jpg", "a//b.jpg", str(tmp_path / "a/b.jpg"), "x/../a/b.jpg")
    tree(tmp_path, {"list.csv": "path,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))})
    assert labels(tmp_path / "list.csv") == {"list/a/b.jpg": 0}


def test_table_without_labels_takes_those_of_the_paths(tmp_path: Path) -> None:
    tree(tmp_path, {"fake/1.jpg": PICTURE, "real/2.jpg": PICTURE, "x/3.jpg": PICTURE})
    tree(tmp_path, {"fake/list.csv": f"path\n1.jpg\n../real/2.jpg\n{tmp_path}/x/3.jpg\n"})
    assert list(labels(tmp_path / "fake/list.csv").values()) == [1, 0, -1]


def parquet(path: Path, columns: dict[str, Any], metadata: dict[str, Any] | None = None) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    table = pyarrow.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": metadata}).encode()})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def test_class_names_of_a_parquet_schema_are_used(tmp_path: Path) -> None:
    ds = tree(tmp_path / "ds", {"a.jpg": PICTURE, "b.jpg": PICTURE})
    parquet(ds / "metadata.parquet", {"file_name": ["a.jpg", "b.jpg"], "label": [0, 1]}, CARD)
    assert labels(ds) == {"ds/a.jpg": 1, "ds/b.jpg": 0}
    cats = {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
    parquet(ds / "metadata.parquet", {"file_name": ["a.jpg", "b.jpg"], "label": [0, 1]}, cats)
    assert labels(ds) == {} and "'cat' is neither real nor fake" in refusals(ds)["ds/a.jpg"]


def test_images_inside_a_parquet_are_read_from_there(tmp_path: Path) -> None:
    images = [
        {"bytes": PICTURE, "path": "x.jpg"},
        {"bytes": OTHER, "path": "x.jpg"},
        {"bytes": PICTURE, "path": None},
        {"bytes": None, "path": "ds/a.jpg"},
    ]
    tree(tmp_path, {"ds/a.jpg": OTHER})
    table = parquet(tmp_path / "train.parquet", {"image": images, "label": [0, 1, 1, 0]}, CARD)
    refs = list(images_in([table]))
    assert [ref.key for ref in refs] == ["train/x.jpg", "train/x.jpg#2", "train/train#3", "train/ds/a.jpg"]
    assert [ref.label for ref in refs] == [1, 0, 0, 1]
    assert [ref.byte_source.read()[0] for ref in refs] == [PICTURE, OTHER, PICTURE, OTHER]
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    assert index([table], store, PlainEncoder()).added == 4
    assert index([table], store, PlainEncoder()).known == 4
    texts = {"image": [{"bytes": PICTURE, "path": None}], "file_name": ["a/b.jpg"], "mask": [OTHER], "label": ["fake"]}
    [ref] = images_in([parquet(tmp_path / "texts.parquet", texts)])
    assert (ref.key, ref.byte_source.read()[0]) == ("texts/a/b.jpg", PICTURE)
    sums = {"path": [b"ds/a.jpg"], "md5": [b"0123456789abcdef"], "label": ["fake"]}
    [ref] = images_in([parquet(tmp_path / "sums.parquet", sums)])  # a checksum is no image
    assert (ref.key, ref.byte_source.read()[0]) == ("sums/ds/a.jpg", OTHER)
    [ref] = images_in([parquet(tmp_path / "jpg.parquet", {"jpg": [OTHER], "label": ["fake"]})])
    assert ref.byte_source.read()[0] == OTHER
    with pytest.raises(SourceError, match="2 columns of images"):
        labels(parquet(tmp_path / "two.parquet", {"left": [PICTURE], "right": [OTHER], "label": ["fake"]}))
    parquet(tmp_path / "ds/metadata.parquet", {"image": [PICTURE, OTHER], "label": ["real", "fake"]})
    (tmp_path / "ds/a.jpg").unlink()
    assert list(labels(tmp_path / "ds").values()) == [0, 1]


def sidecar(label: str) -> str:
    return json.dumps({"label": label})


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_dots_in_names_do_not_mix_sidecars(tmp_path: Path, suffix: str) -> None:
    files = {
        "v1.5_0.jpg": PICTURE,
        "v1.5_0.json": sidecar("fake"),
        "v1.5_1.json": sidecar("real"),
        "v1.5_1.jpg": PICTURE,
        "v1.5_2.jpg": PICTURE,
        "7.cls": "1",
        "7.img.jpg": PICTURE,
        "7.mask.png": PICTURE,
        "8.jpg": PICTURE,
        "8.meta.json": sidecar("fake"),
        "9.a.jpg": PICTURE,
        "9.meta.json": sidecar("fake"),
    }
    assert labels(tarred(tmp_path / f"t{suffix}", files)) == {
        "t/v1.5_0.jpg": 1,
        "t/v1.5_1.jpg": 0,
        "t/v1.5_2.jpg": -1,
        "t/7.img.jpg": 1,
        "t/7.mask.png": 1,
        "t/8.jpg": 1,
        "t/9.a.jpg": 1,
    }


def test_sidecar_of_one_of_several_images_is_refused(tmp_path: Path) -> None:
    tar = tarred(tmp_path / "t.tar", {"a.1.jpg": PICTURE, "a.2.jpg": PICTURE, "a.meta.json": sidecar("fake")})
    assert labels(tar) == {} and all("several images" in reason for reason in refusals(tar).values())


def test_contradicting_sidecars_are_refused(tmp_path: Path) -> None:
    files = {"a.jpg": PICTURE, "a.json": sidecar("fake"), "a.cls": "0", "b.jpg": PICTURE}
    files |= {"b.json": '{"label": "real", "label": "fake"}', "c.jpg": PICTURE, "c.json": sidecar("real")}
    tar = tarred(tmp_path / "t.tar", {**files, "c.txt": "fake"})
    assert labels(tar) == {} and len(refusals(tar)) == 3


def test_sidecars_need_not_be_beside_their_image(tmp_path: Path) -> None:
    images: list[tuple[str, Any]] = [(f"v1.{i}.jpg", PICTURE) for i in range(4)]
    metadata: list[tuple[str, Any]] = [(f"v1.{i}.json", sidecar("fake" if i % 2 else "real")) for i in range(4)]
    expected = {f"t/v1.{i}.jpg": i % 2 for i in range(4)}
    gap: list[tuple[str, Any]] = [("z.jpg", PICTURE)]
    for order in (images + gap + metadata, metadata + gap + images):
        tar = tarred(tmp_path / "t.tar", order)
        assert labels(tar) == {**expected, "t/z.jpg": -1}
    assert labels(tarred(tmp_path / "t.tar.gz", metadata + gap + images)) == {**expected, "t/z.jpg": -1}
    with pytest.raises(SourceError, match="apart from the image"):
        labels(tarred(tmp_path / "t.tar.gz", images + gap + metadata))
    assert list(passed_over(tarred(tmp_path / "t.tar", [*images, *metadata, *gap, ("q.json", sidecar("real"))]))) == [
        "metadata files without an image of their name"
    ]


def test_later_member_of_a_tar_replaces_an_earlier_one(tmp_path: Path) -> None:
    members: list[tuple[str, Any]] = [
        ("a.jpg", PICTURE),
        ("a.json", sidecar("real")),
        ("b.jpg", PICTURE),
        ("a.jpg", OTHER),
        ("a.json", sidecar("fake")),
    ]
    refs = {ref.key: ref for ref in images_in([tarred(tmp_path / "t.tar", members)])}
    assert refs["t/a.jpg"].byte_source.read()[0] == OTHER
    assert {key: ref.label for key, ref in refs.items()} == {"t/a.jpg": 1, "t/b.jpg": -1}
    once = list(images_in([tarred(tmp_path / "t.tar.gz", members)]))
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    report = index([tmp_path / "t.tar.gz"], store, PlainEncoder())
    assert len(once) == 3 and report.added == 2 and "stands twice" in report.skipped[0][1]


def test_backslashes_of_windows_archives_are_separators(tmp_path: Path) -> None:
    files = {"ds\\real\\a.jpg": PICTURE, "ds\\fake\\sd14\\b.jpg": OTHER, "ds\\fake\\": b""}
    expected = {"d/ds/real/a.jpg": 0, "d/ds/fake/sd14/b.jpg": 1}
    assert labels(zipped(tmp_path / "d.zip", files)) == expected
    assert labels(tarred(tmp_path / "d.tar", {name: files[name] for name in list(files)[:2]})) == expected
    table = {"ds\\metadata.csv": "file_name,label\nx\\a.jpg,fake\n", "ds\\x\\a.jpg": PICTURE}
    packed = zipped(tmp_path / "e.zip", table)
    assert labels(packed) == {"e/ds/x/a.jpg": 1}
    [ref] = images_in([packed])
    assert ref.byte_source.read()[0] == PICTURE


def test_limit_draws_from_all_sources_and_classes(tmp_path: Path) -> None:
    refs = [ImageRef(f"a/{i}", "", 0, source="a") for i in range(1000)]
    refs += [ImageRef(f"b/{i}", "", 1, source="b") for i in range(1000)]
    refs += [ImageRef(f"c/{i}", "", 1, source="c") for i in range(3)]
    drawn = list(sampled(refs, 20, 0))
    assert [sum(ref.source == source for ref in drawn) for source in "abc"] in ([9, 8, 3], [8, 9, 3])
    assert drawn == sorted(drawn, key=refs.index) == list(sampled(refs, 20, 0)) != list(sampled(refs, 20, 1))
    assert list(sampled(refs, 5000, 0)) == refs
    assert len(list(sampled(refs, 2, 0))) == 2
    one_each = [ImageRef(f"{i}/x", "", source=str(i)) for i in range(100)]
    assert len(list(sampled(one_each, 7, 0))) == 7


def test_limited_run_is_resumed_with_the_same_images(tmp_path: Path) -> None:
    files = {f"{label}/{i}.jpg": simulated(i % 4, i) for label in ("real", "fake") for i in range(20)}
    ds, store = tree(tmp_path / "ds", files), Store.create(tmp_path / "s", PlainEncoder().space)
    options = IndexOptions(limit=10, seed=3)
    assert index([ds], store, PlainEncoder(), options).added == 10
    assert index([ds], store, PlainEncoder(), options).known == 10
    assert sorted(store.snapshot().column("labels").tolist()) == [0] * 5 + [1] * 5


def test_plan_lists_sources_and_generators(tmp_path: Path) -> None:
    report = plan([tree(tmp_path / "ds", {"real/coco/a.jpg": PICTURE, "fake/sd14/b.jpg": PICTURE})])
    assert [(row["source"], row["label"], row["generators"]) for row in report.to_dict()["sources"]] == [
        ("ds/fake/sd14", "fake", ["sd14"]),
        ("ds/real/coco", "real", []),
    ]


def test_queried_folder_gives_every_image(tmp_path: Path) -> None:
    files = {
        "metadata.csv": "file_name,label\na.jpg,real\n",
        "a.jpg": PICTURE,
        "fake/real/b.jfif": PICTURE,
        "c": PICTURE,
        "d.psd": b"8BPS",
        "@eaDir/a.jpg": PICTURE,
    }
    ds = tree(tmp_path / "ds", files)
    refs = list(image_refs([ds]))
    assert sorted(Path(ref.path).name for ref in refs if not ref.refused) == ["a.jpg", "b.jfif", "c"]
    assert [ref.refused for ref in refs if ref.refused] == [
        "not read: images or videos in a format that is not read (1)"
    ]


def test_sync_deletes_only_rows_of_listed_folders(tmp_path: Path) -> None:
    ds = tree(tmp_path / "afhq", {"real/a.jpg": PICTURE})
    tree(tmp_path, {"x.jpg": OTHER, "mine.csv": "path,label,source\nx.jpg,real,afhq\n"})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    index([ds], store, PlainEncoder())
    report = index([tmp_path / "mine.csv"], store, PlainEncoder(), IndexOptions(sync=True))
    assert report.dropped == 0 and len(store.snapshot()) == 2


def test_gzip_without_a_name_is_still_an_image() -> None:
    assert file_kind("x", lambda: gzip.compress(b"x")[:32]) is FileKind.other


def test_key_of_another_folder_is_not_taken(tmp_path: Path) -> None:
    tree(tmp_path, {"a/real/images/0.jpg": PICTURE, "a/fake/images/0.jpg": OTHER, "a/fake/images/1.jpg": OTHER})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    assert index([tmp_path / "a/real/images"], store, PlainEncoder()).added == 1
    before = store.snapshot()
    report = index([tmp_path / "a/fake/images"], store, PlainEncoder())
    assert (report.added, report.replaced, report.relabelled) == (1, 0, 0)
    assert "another image; rename one of the two folders" in report.skipped[0][1]
    stored = store.snapshot()
    assert stored.digests(stored.find(["images/0.jpg"])) == before.digests(before.find(["images/0.jpg"]))


def test_moved_and_copied_folders_are_known(tmp_path: Path) -> None:
    tree(tmp_path, {"old/ds/real/0.jpg": PICTURE})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    index([tmp_path / "old/ds"], store, PlainEncoder())
    shutil.copytree(tmp_path / "old/ds", tmp_path / "copy/ds")
    assert index([tmp_path / "copy/ds"], store, PlainEncoder()).known == 1
    (tmp_path / "old").rename(tmp_path / "new")
    assert index([tmp_path / "new/ds"], store, PlainEncoder()).known == 1
    tree(tmp_path, {"copy/ds/real/0.jpg": OTHER})
    shutil.rmtree(tmp_path / "new")
    assert index([tmp_path / "copy/ds"], store, PlainEncoder()).replaced == 1


def test_two_folders_of_one_name_in_a_tree_are_noticed(tmp_path: Path) -> None:
    table = "image_path,target\n0.jpg,0\n"
    files = {"t/ffhq/images/metadata.csv": table, "t/sd/images/metadata.csv": table.replace(",0\n", ",6\n")}
    tree(tmp_path, {**files, "t/ffhq/images/0.jpg": PICTURE, "t/sd/images/0.jpg": OTHER})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    for report in (plan([tmp_path / "t"]), index([tmp_path / "t"], store, PlainEncoder())):
        assert report.listed == 1 and "two folders called images" in report.skipped[0][1]


def test_sync_concerns_the_listed_folder_alone(tmp_path: Path) -> None:
    tree(tmp_path, {"ds1/real/0.jpg": PICTURE, "ds2/real/1.jpg": OTHER, "tree/a/metadata.csv": "image_path,target\n"})
    for name in ("a", "b"):
        tree(tmp_path / "tree" / name, {"metadata.csv": "image_path,target\nx.jpg,0\n", "x.jpg": PICTURE})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    index([tmp_path / "ds1/real"], store, PlainEncoder())
    assert index([tmp_path / "ds2/real"], store, PlainEncoder(), IndexOptions(sync=True)).dropped == 0
    index([tmp_path / "tree"], store, PlainEncoder())
    shutil.rmtree(tmp_path / "tree/b")
    assert index([tmp_path / "tree"], store, PlainEncoder(), IndexOptions(sync=True)).dropped == 1
    (tmp_path / "ds1/real/0.jpg").unlink()
    assert index([tmp_path / "ds2/real"], store, PlainEncoder(), IndexOptions(sync=True)).dropped == 1


def test_sync_keeps_rows_whose_label_is_invalid(tmp_path: Path) -> None:
    ds = tree(tmp_path / "ds", {"metadata.csv": "file_name,label\na.jpg,fake\n", "a.jpg": PICTURE})
    store = Store.create(tmp_path / "s", PlainEncoder().space)
    index([ds], store, PlainEncoder())
    tree(ds, {"metadata.csv": "file_name,label\na.jpg,faek\n"})
    report = index([ds], store, PlainEncoder(), IndexOptions(sync=True))
    assert (report.dropped, len(report.skipped)) == (0, 1)


def test_roots_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, {"n/fake/sd14/a.jpg": PICTURE, "n/fake/@eaDir/b.jpg": OTHER, "n/fake/.thumbnails/c.jpg": OTHER})
    tree(tmp_path, {"n/fake/d.jpg": OTHER, "n/.hidden/e.jpg": PICTURE})
    pattern = passed_over(f"{tmp_path}/n/fake/*")
    assert pattern[FileKind.foreign] == 2 and sum(pattern.values()) == 3
    assert labels(f"{tmp_path}/n/fake/*") == {"sd14/a.jpg": 1}
    assert labels(tmp_path / "n/fake/sd14", tmp_path / "n/fake/@eaDir") == {"sd14/a.jpg": 1}
    assert labels(tmp_path / "n/.hidden") == {".hidden/e.jpg": -1}
    with pytest.raises(SourceError, match="nothing to index: files and folders of other programs"):
        labels(tmp_path / "n/fake/@eaDir")
    with pytest.raises(SourceError, match="nothing to index: images beside the folders"):
        labels(f"{tmp_path}/n/fake/*.jpg")


def test_table_beside_other_folders_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, {"m/real/a.jpg": PICTURE, "m/fakes/metadata.csv": "file_name,label\nb.jpg,fake\n"})
    with pytest.raises(SourceError, match="describes the folder it is in"):
        expand([tmp_path / "m/real", tmp_path / "m/fakes/metadata.csv"])
    assert len(expand([tmp_path / "m/fakes", tmp_path / "m/fakes/metadata.csv"])) == 1


@pytest.mark.parametrize("name", ["x.npz", "x.arrow", "x.tfrecord", "x.h5", "x.pkl", "labels.xlsx", "metadata.json"])
def test_containers_are_counted(tmp_path: Path, name: str) -> None:
    assert passed_over(tree(tmp_path / "ds", {"a.jpg": PICTURE, name: "x"})) == {FileKind.container: 1}


@pytest.mark.parametrize("name", ["photo.bin", "made with v1.5.bin", "page.html", "x.lock"])
def test_images_with_the_suffix_of_a_document_are_listed(tmp_path: Path, name: str) -> None:
    ds = tree(tmp_path / "ds", {name: PICTURE, "a.bin": "x", "b.html": "<p>"})
    assert list(labels(ds)) == [f"ds/{name}"] and passed_over(ds) == {}
