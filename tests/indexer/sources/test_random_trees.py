"""Random data sets of every layout, indexed as a black box: each row is what the writer of the data set knows.

A data set is written as a folder, a zip or a tar. The writer remembers what each image is: a row with its label,
generator and category, an image that no table names, or a file of another program.
"""

import csv
import hashlib
import io
import json
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index
from clipfake.indexer.sources.base import NOT_NAMED
from clipfake.store.store import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

REAL, FAKE, UNKNOWN = 0, 1, -1
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".gif": "GIF", ".ppm": "PPM"}
# what an image shows or how it was treated, below a folder that says what it is
SUBJECTS = (
    "nature",
    "animals",
    "original",
    "synthetic",
    "generated",
    "AI",
    "authentic",
    "jpeg60",
    "v1.5",
    "a b",
    "café",
)
GENERATORS = ("sd_v1.5", "stylegan2", "BigGAN", "DALL·E 3", "midjourney-v6", "pro gan")
ORIGINS = ("ffhq", "coco 2017", "flickr.com", "imágenes")
STEMS = ("img", "IMG_", "a b ", "été-", "x,y ", 'say "hi" ', "sd_v1.5_", "[1] ", "写真", "file.name.", "0")
FOREIGN = (
    *("@eaDir/{0}/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/{0}", ".ipynb_checkpoints/{0}", "__MACOSX/._{0}", "._{0}"),
    *(".Trash-1000/files/{0}", "$RECYCLE.BIN/{0}", "#recycle/{0}", ".{0}", "@eaDir/{0}", "lost+found/{0}"),
)


@dataclass(frozen=True)
class Truth:
    """What the writer knows of an image; None where the layout does not say."""

    label: int
    generator: str | None = None
    category: str | None = None


@dataclass
class DataSet:
    """Files of a data set by path, and what is known of its images."""

    name: str
    rng: random.Random
    files: dict[str, bytes] = field(default_factory=dict)
    rows: dict[bytes, Truth] = field(default_factory=dict)  # digest of the file -> truth
    contents: dict[bytes, bytes] = field(default_factory=dict)  # digest -> file
    not_named: set[bytes] = field(default_factory=set)  # digests of images below a table that does not name them
    foreign: set[bytes] = field(default_factory=set)  # digests of images that other programs left
    refused: int = 0  # rows of tables without an image, or with a label that is none

    def image_name(self) -> str:
        suffix = self.rng.choice(list(FORMATS))
        suffix = self.rng.choice((suffix, suffix, suffix.upper(), suffix.capitalize()))
        return f"{self.rng.choice(STEMS)}{len(self.files)}{suffix}"

    def draw(self, name: str) -> bytes:
        """A distinct image in the format of a name."""
        pixels = np.random.default_rng(self.rng.getrandbits(60)).integers(0, 256, (9, 9, 3), np.uint8)
        side = self.rng.randint(8, 40)
        image = Image.fromarray(pixels).resize((side, self.rng.randint(8, 40)), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        lossless = {"lossless": True} if name.lower().endswith(".webp") else {}
        image.save(out, FORMATS[f".{name.lower().rpartition('.')[2]}"], **lossless)
        return out.getvalue()

    def put(self, path: str, truth: Truth | None) -> None:
        """Add an image; without a truth it is one that no table names."""
        self.files[path] = content = self.draw(path)
        digest = digest_of(content)
        self.contents[digest] = content
        if truth is None:
            self.not_named.add(digest)
        else:
            self.rows[digest] = truth

    def add_foreign(self) -> None:
        """Add what other programs leave, beside some of the files."""
        folders = sorted({path.rpartition("/")[0] for path in self.files})
        for _ in range(self.rng.randint(0, 4)):
            folder, name = self.rng.choice(folders), self.image_name()
            path = f"{folder}/" * bool(folder) + self.rng.choice(FOREIGN).format(name)
            self.files[path] = content = self.draw(name)
            self.foreign.add(digest_of(content))
        if self.rng.random() < 0.3:
            self.files[f"{self.rng.choice(folders)}/Thumbs.db".lstrip("/")] = b"not an image"


def digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


# --- layouts


def labelled_folders(data: DataSet) -> None:
    """real/<origin>/… and fake/<generator>/…; whatever the folders below are called."""
    rng = data.rng
    top = rng.choice(("", "train/", "data/train/"))
    words = rng.choice((("real", "fake"), ("Real", "FAKE"), ("reals", "fakes"), ("0_real", "1_fake")))
    for label, word, names in ((REAL, words[0], ORIGINS), (FAKE, words[1], GENERATORS)):
        for name in rng.sample([*names, *SUBJECTS], rng.randint(1, 3)):
            below = "".join(f"{part}/" for part in rng.sample([*SUBJECTS, "images"], rng.randint(0, 2)))
            generator = "" if label == REAL else name if name in GENERATORS else None
            for _ in range(rng.randint(1, 4)):
                data.put(f"{top}{word}/{name}/{below}{data.image_name()}", Truth(label, generator, ""))


def per_generator(data: DataSet) -> None:
    """<generator>/0_real and <generator>/1_fake, or <generator>/train/nature and ai."""
    rng = data.rng
    for generator in rng.sample(GENERATORS, rng.randint(1, 3)):
        split = rng.choice(("", "train/", "val/"))
        for label, word in zip((REAL, FAKE), rng.choice((("0_real", "1_fake"), ("nature", "ai"))), strict=True):
            for _ in range(rng.randint(1, 3)):
                truth = Truth(label, generator if label == FAKE else "", "")
                data.put(f"{generator}/{split}{word}/{data.image_name()}", truth)


def unlabelled(data: DataSet) -> None:
    for folder in data.rng.sample(("", "beach/", "2024/05/", "realistic/", "fakery/x/"), data.rng.randint(1, 3)):
        for _ in range(data.rng.randint(1, 3)):
            data.put(f"{folder}{data.image_name()}", Truth(UNKNOWN, "", ""))


def artifact(data: DataSet) -> None:
    """A metadata.csv with image_path, target and category, at the root or below; some images are not named."""
    rng = data.rng
    for folder in rng.choice(([""], ["gan_a/", "gan_b/"], ["x/gan_c/"])):
        name = folder.rstrip("/").rpartition("/")[2] or data.name
        table = []
        for number in range(rng.randint(1, 6)):
            target = rng.choice((0, rng.randint(1, 6)))
            category = rng.choice(("", "cat", "human face", "café"))
            path = f"{rng.choice(('', 'images/', 'images/real/'))}{data.image_name()}"
            truth = Truth(REAL if target == 0 else FAKE, name if target else "", category)
            data.put(folder + path, truth)
            shown = rng.choice((str(target), f"{target}.0", f"0{target}"))
            table.append({"filename": str(number), "image_path": path, "target": shown, "category": category})
        add_unnamed(data, folder)
        add_refused(data, table, "image_path", {"target": "0"}, {"target": "7"})
        data.files[f"{folder}metadata.csv"] = as_csv(table, rng)


def hugging_face(data: DataSet) -> None:
    """metadata.csv, .jsonl or .parquet with file_name and label, and perhaps another one in a folder below."""
    rng = data.rng
    for folder in ("", "below/")[: rng.randint(1, 2)]:
        table: list[dict[str, Any]] = []
        with_generator = rng.random() < 0.5
        for _ in range(rng.randint(1, 6)):
            label = rng.choice((REAL, FAKE, UNKNOWN))
            words = {REAL: ("real", "Real", "0"), FAKE: ("fake", "FAKE", "1"), UNKNOWN: ("unknown", "")}[label]
            path = f"{rng.choice(('', 'images/', 'fake/', 'real/nature/'))}{data.image_name()}"
            if path.startswith(("fake/", "real/")):  # a number that contradicts these is refused
                words = words[:2] if label != UNKNOWN else words
            generator = rng.choice(GENERATORS) if with_generator and label == FAKE else ""
            data.put(folder + path, Truth(label, generator if with_generator or label != FAKE else None))
            table.append(
                {"file_name": path, "label": rng.choice(words)} | ({"generator": generator} if with_generator else {})
            )
        add_unnamed(data, folder)
        add_refused(data, table, "file_name", {"label": "real"}, {"label": "neither"})
        suffix, write = rng.choice((("csv", as_csv), ("jsonl", as_json_lines), ("parquet", as_parquet)))
        data.files[f"{folder}metadata.{suffix}"] = write(table, rng)


def add_unnamed(data: DataSet, folder: str) -> None:
    for _ in range(data.rng.randint(0, 2)):
        data.put(f"{folder}{data.rng.choice(('', 'images/'))}{data.image_name()}", None)


def add_refused(data: DataSet, table: list[dict[str, Any]], column: str, good: Any, bad: Any) -> None:
    """Add rows whose image is missing, or that have no valid label."""
    blank = dict.fromkeys(table[0], "")
    if data.rng.random() < 0.3:
        table.append({**blank, column: "images/missing.png", **good})
        data.refused += 1
    if data.rng.random() < 0.3:
        name = f"odd-label-{data.image_name()}"
        table.append({**blank, column: name, **bad})
        data.refused += 1


def as_csv(table: Sequence[dict[str, Any]], rng: random.Random) -> bytes:
    out = io.StringIO()
    windows = rng.random() < 0.3
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\r\n" if windows else "\n")
    writer.writeheader()
    paths = {"image_path", "file_name"}
    writer.writerows(
        {name: value.replace("/", "\\") if windows and name in paths else value for name, value in row.items()}
        for row in table
    )
    return out.getvalue().encode(rng.choice(("utf-8", "utf-8-sig", "utf-16")))


def as_json_lines(table: Sequence[dict[str, Any]], rng: random.Random) -> bytes:
    ascii_only = rng.random() < 0.5
    return "".join(f"{json.dumps(row, ensure_ascii=ascii_only)}\n" for row in table).encode()


def as_parquet(table: Sequence[dict[str, Any]], rng: random.Random) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(table)), out)
    return out.getvalue()


def class_label(data: DataSet) -> None:
    """A Hugging Face table whose label is a number, with the names of the classes in the table itself."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from pyarrow import parquet

    rng, table = data.rng, []
    names = rng.choice((["fake", "real"], ["real", "fake"]))
    for _ in range(rng.randint(1, 5)):
        path, number = f"images/{data.image_name()}", rng.randint(0, 1)
        data.put(path, Truth(REAL if names[number] == "real" else FAKE))
        table.append({"file_name": path, "label": number})
    feature = {"names": names, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    schema = pyarrow.schema([("file_name", pyarrow.string()), ("label", pyarrow.int64())], metadata=metadata)
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(table, schema), out)
    data.files["metadata.parquet"] = out.getvalue()


def contradictory(data: DataSet) -> None:
    """Folders that say both real and fake: refused, each image by a line of the report."""
    rng = data.rng
    for outer, inner in (("real", "fake"), ("1_fake", "0_real")):
        for _ in range(rng.randint(1, 2)):
            name = data.image_name()
            data.files[f"{outer}/{inner}/{name}"] = data.draw(name)
            data.refused += 1
    data.put(f"real/{data.image_name()}", Truth(REAL, "", ""))


def sidecars(data: DataSet) -> None:
    """Images with a .json or .cls of their own name beside them, and names with dots; only in a tar."""
    rng = data.rng
    for number in range(rng.randint(2, 8)):
        stem = f"{rng.choice(('', 'part.1/'))}{rng.choice(('sd_v1.5_', 'sd_v1.4_', '', 'img.'))}{number:05}"
        label = rng.choice((REAL, FAKE))
        generator, category = (rng.choice(GENERATORS) if label == FAKE else ""), rng.choice(("", "cat"))
        image = stem + rng.choice((".jpg", ".png", ".webp", ".JPG"))
        if rng.random() < 0.3:
            sidecar, content, truth = f"{stem}.cls", str(label), Truth(label, None if label else "", "")
        else:
            fields = {"label": rng.choice((("real", "0"), ("fake", "1"))[label]), "caption": "label: real"}
            fields |= {"generator": generator, "category": category}
            sidecar, content, truth = f"{stem}.json", json.dumps(fields), Truth(label, generator, category)
        pair: list[Callable[[], None]] = [
            lambda image=image, truth=truth: data.put(image, truth),  # type: ignore[misc]
            lambda sidecar=sidecar, content=content: data.files.update({sidecar: content.encode()}),  # type: ignore[misc]
        ]
        for add in rng.sample(pair, 2):
            add()


LAYOUTS = (labelled_folders, per_generator, unlabelled, artifact, hugging_face, class_label, contradictory)


# --- packing


def write_folder(data: DataSet, place: Path) -> Path:
    for path, content in data.files.items():
        file = place / data.name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place / data.name


def write_zip(data: DataSet, place: Path) -> Path:
    archive = place / f"{data.name}{data.rng.choice(('.zip', '.ZIP'))}"
    with zipfile.ZipFile(archive, "w", data.rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for path, content in data.files.items():
            file.writestr(path, content)
    return archive


def write_tar(data: DataSet, place: Path) -> Path:
    suffix = data.rng.choice((".tar", ".tar", ".tar.gz"))
    files = list(data.files.items())
    if suffix == ".tar.gz":  # it is read once, so that tables must come first
        files.sort(key=lambda file: not file[0].rpartition("/")[2].startswith("metadata."))
    archive = place / f"{data.name}{suffix}"
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as tar:
        for path, content in files:
            info = tarfile.TarInfo(data.rng.choice(("", "./")) + path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def make_data_set(name: str, rng: random.Random, place: Path) -> tuple[DataSet, Path]:
    """Write a random data set; returns it and what to index."""
    data = DataSet(name, rng)
    layout = rng.choice((*LAYOUTS, sidecars))
    layout(data)
    data.add_foreign()
    write = write_tar if layout is sidecars else rng.choice((write_folder, write_folder, write_zip, write_tar))
    return data, write(data, place)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_trees_are_indexed_as_their_writer_knows_them(seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = [make_data_set(f"set{number}", rng, place) for number in range(rng.randint(1, 3))]
        encoder = PlainEncoder()
        store = Store.create(place / "store", encoder.space)
        report = index([path for _, path in made], store, encoder)
        again = index([path for _, path in made], store, encoder)
        snapshot = store.snapshot()
        columns = {name: snapshot.column(name).tolist() for name in ("labels", "generators", "categories", "keys")}
        digests, vectors = [digest.tobytes() for digest in snapshot.column("digests")], snapshot.vectors()

    rows = {digest: truth for data, _ in made for digest, truth in data.rows.items()}
    contents = {digest: content for data, _ in made for digest, content in data.contents.items()}
    reasons = dict(report.skipped)
    assert sorted(digests) == sorted(rows), reasons  # each image once; none of other programs, none without a row
    for position, digest in enumerate(digests):
        truth, found = rows[digest], {name: values[position] for name, values in columns.items()}
        assert found["labels"] == truth.label, found
        assert "\\" not in found["keys"]  # the separator of Windows in a table is that of the folder
        if truth.generator is not None:
            assert found["generators"] == truth.generator, found
        if truth.category is not None:
            assert found["categories"] == truth.category, found
        with Image.open(io.BytesIO(contents[digest])) as image:
            expected = encoder.encode([np.asarray(image.convert("RGB"))])[0]
        np.testing.assert_allclose(vectors[position], expected, atol=2e-3)
    assert (again.added, again.replaced, again.known) == (0, 0, len(rows))
    # what is not a row is reported
    not_named = report.passed_over[NOT_NAMED].files if NOT_NAMED in report.passed_over else 0
    assert not_named == sum(len(data.not_named) for data, _ in made)
    assert len(report.skipped) == sum(data.refused for data, _ in made), reasons
    assert len(contents) == len(digests) + not_named
