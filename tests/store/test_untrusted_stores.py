"""Malicious stores, heads and exports with valid checksums raise typed errors."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.core.sealed_json import checksum, digest_of
from clipfake.detector.calibration import Calibration, Platt, WeightedScores
from clipfake.detector.head import Head
from clipfake.detector.projection import Projection
from clipfake.detector.split import Split
from clipfake.detector.svm import Svm
from clipfake.detector.verdict import Refusal
from clipfake.errors import ClipfakeError, Damaged, HeadError, SourceError, StoreError
from clipfake.show.verdict_panel import csv_line
from clipfake.store.exchange.import_rows import ImportDefaults, import_rows
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.repair import repair
from clipfake.store.manifest import path_of, read_manifest
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.records import Block, Rows
from clipfake.store.search.ann_index import folders, open_index
from clipfake.store.shard import Shard
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SPACE = Space("toy", "ab" * 32, 4)
ROWS = 12
DEEP = "[" * 100_000


def unit(rows: int, dim: int = 4) -> Any:
    vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def original_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a shard, tombstones, named vectors and an index."""
    store = Store.create(tmp_path_factory.mktemp("made") / "store", SPACE)
    keys = [f"s/{i}.png" for i in range(ROWS)]
    with store.writer() as writer:
        rows = Rows.make(keys, [i % 2 for i in range(ROWS)], categories=["cat"] * ROWS)
        thumbnails = tuple(bytes([i]) * i for i in range(ROWS))
        writer.append(Block(SPACE, rows, unit(ROWS), thumbnails, {"cat": unit(1)[0]}))
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) == 3)
    with named_vectors_writer(store.folder, "depth", Space("deep", "cd" * 32, 4)) as column:
        column.put(np.arange(2), unit(2))
    build_index(store, kind="plain")
    return store.folder


@pytest.fixture
def store(original_store: Path, tmp_path: Path) -> Path:
    """A copy of the store to be altered."""
    return Path(shutil.copytree(original_store, tmp_path / "store"))


def read_everything(folder: Path) -> None:
    """Read everything in a store."""
    snapshot = Store.open(folder).snapshot()
    assert len(snapshot.rows) == len(snapshot) == len(snapshot.vectors()) == len(snapshot.ids)
    snapshot.search(unit(2), k=3)
    assert snapshot.find(["s/1.png", "s/no.png"]).tolist() == [1, -1]
    snapshot.thumbnails(np.arange(len(snapshot)))
    assert all(len(vector) == snapshot.space.dim for vector in snapshot.texts.values())
    open_named_vectors(folder, "depth").vectors(snapshot, np.arange(len(snapshot)))


def alter_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the newest manifest and update its checksum."""
    path = path_of(folder, read_manifest(folder).number)
    content = json.loads(path.read_text())
    content.pop("digest")
    change(content)
    content["digest"] = checksum(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps(content))


def test_unchanged_store_is_readable(store: Path) -> None:
    read_everything(store)
    alter_manifest(store, lambda fields: None)
    read_everything(store)


# Manifests


PART: list[dict[str, Any]] = [
    {"rows": -1},
    {"rows": 2**40},
    {"rows": 2**31, "size": 2**20},
    {"rows": "12"},
    {"rows": 1.5},
    {"rows": None},
    {"size": -1},
    {"size": 2**70},
    {"deleted_rows": -1},
    {"deleted_rows": 13},
    {"deleted_rows": 2},
    {"deleted": "", "deleted_rows": 1},
    {"deleted": "../x.u4"},
    {"deleted": None},
    {"name": "../000001.h5"},
    {"name": "99999999999999.h5"},
    {"name": 1},
    {"header": "00"},
    {"more": 1},
]


@pytest.mark.parametrize("change", PART)
def test_invalid_shard_reference_is_damaged(change: dict[str, Any], store: Path) -> None:
    alter_manifest(store, lambda fields: fields["parts"][0].update(change))
    with pytest.raises(Damaged):
        read_everything(store)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 10**30},
        {"number": "2"},
        {"next_shard": 1},
        {"next_shard": -1},
        {"next_shard": "x"},
        {"parts": {}},
        {"parts": [1]},
        {"parts": None},
        {"space": {}},
        {"space": None},
        {"space": SPACE.to_dict() | {"dim": 0}},
        {"space": SPACE.to_dict() | {"dim": -4}},
        {"space": SPACE.to_dict() | {"dim": 10**12}},
        {"space": SPACE.to_dict() | {"dim": 1e999}},
        {"space": SPACE.to_dict() | {"dim": "4"}},
        {"space": SPACE.to_dict() | {"dim": 3}},
    ],
)
def test_invalid_manifest_is_damaged(change: dict[str, Any], store: Path) -> None:
    alter_manifest(store, lambda fields: fields.update(change))
    with pytest.raises(StoreError):
        read_everything(store)


def test_shard_listed_twice_is_refused(store: Path) -> None:
    alter_manifest(store, lambda fields: fields["parts"].append(fields["parts"][0]))
    with pytest.raises(Damaged, match="are not ascending"):
        read_everything(store)


@pytest.mark.parametrize("content", [DEEP, "9" * 5000, "[]", "null", "\0", '{"digest": 1}'])
def test_unparsable_json_is_damaged(content: str, store: Path) -> None:
    newest = path_of(store, read_manifest(store).number)
    kept = newest.read_text()
    for path, opened in [
        (newest, lambda: Store.open(store)),
        (store / "columns/depth/column.json", lambda: open_named_vectors(store, "depth")),
        (folders(store)[0] / "index.json", lambda: open_index(folders(store)[0], SPACE)),
    ]:
        path.write_text(content)
        with pytest.raises(Damaged):
            opened()  # type: ignore[no-untyped-call]
        newest.write_text(kept)


@pytest.mark.parametrize("rows", [[12], [2**32 - 1], [3, 3], [5, 4], []])
def test_invalid_tombstones_are_damaged(rows: list[int], store: Path) -> None:
    content = np.array(rows, "<u4").tobytes()

    def change(fields: dict[str, Any]) -> None:
        part = fields["parts"][0]
        part.update(deleted_rows=max(len(rows), 1), deleted_digest=checksum(content))
        (store / "deleted" / part["deleted"]).write_bytes(content)

    alter_manifest(store, change)
    with pytest.raises(Damaged, match="is not an ascending list of"):
        read_everything(store)


# Shards


def alter_shard(folder: Path, change: Callable[[h5py.File], Any]) -> None:
    """Change the shard and update all checksums."""
    path = folder / "shards" / "000001.h5"
    with h5py.File(path, "r+") as file:
        change(file)
        checksums = json.loads(file.attrs["checksums"])
        for name in checksums:
            with suppress(Exception):
                if file[name].size < 10**6:
                    checksums[name] = checksum(np.ascontiguousarray(file[name][...]))
        file.attrs["checksums"] = json.dumps(checksums, sort_keys=True)
    with suppress(ClipfakeError):
        header = Shard(path).header
        alter_manifest(
            folder,
            lambda fields: fields["parts"][0].update(header=header.digest, size=path.stat().st_size, rows=header.rows),
        )


def put(name: str, values: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def never_written(file: h5py.File) -> None:
    del file["labels"]
    file.create_dataset("labels", (2**40,), "i1", chunks=(2**20,))


def compressed(file: h5py.File) -> None:
    del file["keys/bytes"]
    file.create_dataset("keys/bytes", (2**31,), "u1", chunks=(2**20,), compression="gzip")


def external(file: h5py.File) -> None:
    del file["keys/bytes"]
    file.create_dataset("keys/bytes", (64,), "u1", external=[("/etc/passwd", 0, 64)])


def virtual(file: h5py.File) -> None:
    del file["keys/bytes"]
    layout = h5py.VirtualLayout((64,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (64,))
    file.create_virtual_dataset("keys/bytes", layout)


def too_many_rows(file: h5py.File) -> None:
    file.attrs["rows"] = 2**31


SHARDS: dict[str, Callable[[h5py.File], Any]] = {
    "never written": never_written,
    "compressed": compressed,
    "external": external,
    "virtual": virtual,
    "too many rows": too_many_rows,
    "another file": linked("labels", h5py.ExternalLink("other.h5", "x")),
    "a broken link": linked("labels", h5py.SoftLink("/nowhere")),
    "a link to itself": linked("labels", h5py.SoftLink("/labels")),
    "a group": lambda file: (file.__delitem__("labels"), file.create_group("labels")),
    "text": put("labels", ["x"] * ROWS),
    "references": lambda file: (file.__delitem__("labels"), file.create_dataset("labels", (ROWS,), h5py.ref_dtype)),
    "a scalar": put("labels", 1),
    "two columns": put("labels", np.zeros((ROWS, 2), "i1")),
    "fewer": put("labels", np.zeros(ROWS - 1, "i1")),
    "a code too large": put("sources/codes", np.full(ROWS, 9, "<u4")),
    "a code below 0": put("sources/codes", np.full(ROWS, -9, "<i4")),
    "unsorted ends": put("keys/ends", np.arange(ROWS, dtype="<u8")[::-1]),
    "ends beyond": put("keys/ends", np.full(ROWS, 2**63, "<u8")),
    "invalid UTF-8": put("keys/bytes", np.full(90, 255, "u1")),
    "digests of another length": put("digests", np.zeros((ROWS, 15), "u1")),
    "integer vectors": put("vectors", np.ones((ROWS, 4), "i2")),
    "vectors in one row": put("vectors", np.ones(ROWS * 4, "<f2")),
    "thumbnails ending beyond": put("thumbnails/ends", np.full(ROWS, 2**62, "<u8")),
    "fewer thumbnails": put("thumbnails/ends", np.zeros(2, "<u8")),
    "texts of another length": put("texts/vectors", np.ones((1, 3), "<f2")),
    "more texts": put("texts/vectors", np.ones((2, 4), "<f2")),
    "no rows": lambda file: file.attrs.__setitem__("rows", -1),
    "no space": lambda file: file.attrs.__setitem__("space", "[" * 9999),
    "a space of numbers": lambda file: file.attrs.__setitem__("space", np.arange(4)),
    "no version": lambda file: file.attrs.__setitem__("version", "x"),
    "no checksums": lambda file: file.attrs.__setitem__("checksums", "{}"),
}


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.filterwarnings("ignore")
def test_invalid_shard_is_damaged(case: str, store: Path) -> None:
    other = store / "shards" / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros(ROWS, "i1")
    alter_shard(store, SHARDS[case])
    with pytest.raises(StoreError):
        read_everything(store)


@pytest.mark.parametrize("link", ["external", "soft"])
def test_link_in_a_shard_is_refused_before_it_is_followed(store: Path, tmp_path: Path, link: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # HDF5 would wait for a writer
    target = h5py.ExternalLink(str(tmp_path / "pipe"), "/x") if link == "external" else h5py.SoftLink("/key_hashes")
    alter_shard(store, linked("vectors", target))
    with pytest.raises(Damaged, match="link to another place"):
        read_everything(store)


@pytest.mark.parametrize("change", [{"number": 10**18 - 1}, {"next_shard": 10**9}, {"next_shard": 10**9 - 1}])
def test_numbers_without_a_successor_are_damaged(store: Path, change: dict[str, int]) -> None:
    old = max((store / "snapshots").glob("*.json"))
    alter_manifest(store, lambda fields: fields.update(change))
    old.rename(path_of(store, change.get("number", int(old.stem))))
    with pytest.raises(Damaged, match="too large to go on from"):
        Store.open(store)


@pytest.mark.parametrize("name", ["000001-000009.u4", "000001-zz.u4", "000001-000002 (copy).u4"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "file"])
def test_repair_is_not_held_up_by_what_lies_beside(store: Path, name: str, kind: str) -> None:
    path = store / "deleted" / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(4))
    for manifest in (store / "snapshots").glob("*.json"):
        manifest.write_text("{")
    (store / "shards" / "999999999.h5").mkdir()
    assert repair(store).rows in (ROWS - 1, ROWS)  # a file of clipfake's own name is a list of deleted rows
    with Store.open(store).writer() as writer:
        writer.delete(np.arange(len(writer.snapshot)) == 0)


@pytest.mark.parametrize("size", [0, 8, 2**64 - 1, 2**64 - 16])
@pytest.mark.parametrize("number", [0, 1])
def test_corrupt_global_heap_does_not_hang_hdf5(size: int, number: int, store: Path) -> None:
    path = store / "shards" / "000001.h5"
    content = bytearray(path.read_bytes())
    first = content.find(b"GCOL") + 16
    content[first : first + 2], content[first + 8 : first + 16] = bytes([number, 0]), size.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(StoreError):
        read_everything(store)


# Named vectors and indexes


def test_named_vectors_cannot_refer_to_files_outside(store: Path) -> None:
    listing = store / "columns/depth/column.json"
    content = json.loads(listing.read_text())
    content.pop("digest")
    content["pieces"][0]["file"] = "../../../../dev/zero"
    listing.write_text(json.dumps({**content, "digest": checksum(json.dumps(content, sort_keys=True).encode())}))
    with pytest.raises(Damaged, match="invalid file name"):
        open_named_vectors(store, "depth")


INDEX: dict[str, Callable[[dict[str, Any]], Any]] = {
    "label": lambda fields: fields["labels"][0].update(label="../0"),
    "rows": lambda fields: fields["labels"][0].update(rows=10**9),
    "files": lambda fields: fields["labels"][0].update(files={"../../x": [0, 0, "", ""]}),
    "none": lambda fields: fields["labels"][0].update(files={}),
    "efforts": lambda fields: fields["labels"][0].update(efforts={"x": 1}),
    "labels": lambda fields: fields.update(labels=[[]]),
    "snapshot": lambda fields: fields.update(snapshot=1e999),
    "space": lambda fields: fields["space"].update(dim=-1),
}


@pytest.mark.parametrize("case", INDEX)
def test_invalid_index_is_damaged_and_skipped_by_searches(case: str, store: Path) -> None:
    folder = folders(store)[0]
    content = json.loads((folder / "index.json").read_text())
    content.pop("digest")
    INDEX[case](content)
    (folder / "index.json").write_text(json.dumps({**content, "digest": digest_of(content)}))
    with pytest.raises(Damaged):
        open_index(folder, SPACE)
    read_everything(store)


@pytest.mark.parametrize("name, values", [("0.ids.npy", np.zeros(3, "i8")), ("0.cells.npy", np.full(6, 10**6, "i8"))])
def test_mismatched_arrays_of_an_index_are_damaged(name: str, values: Any, store: Path) -> None:
    folder = folders(store)[0]
    np.save(folder / name, values)
    fields = json.loads((folder / "index.json").read_text())
    fields.pop("digest")
    content = (folder / name).read_bytes()
    label = next(label for label in fields["labels"] if name in label["files"])
    label["files"][name] = [len(content), len(content), checksum(content), checksum(content)]
    (folder / "index.json").write_text(json.dumps({**fields, "digest": digest_of(fields)}))
    with pytest.raises(Damaged, match="cannot be read"):
        open_index(folder, SPACE)
    read_everything(store)


# Heads and calibrations


def head() -> Head:
    weights = {"W": np.eye(3, 4, dtype=np.float32), "b": np.zeros(3, np.float32)}
    split = Split.make([f"{i}" for i in range(40)], np.arange(40) % 2)
    return Head(SPACE, 0, split, Projection("linear", weights), Svm(unit(5, 3), np.ones(5), 0.0, 1.0))


HEADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda arrays: arrays["projection.W"].fill(np.nan),
    "infinite": lambda arrays: arrays["classifier.weights"].fill(np.inf),
    "gamma": lambda arrays: arrays.update({"classifier.intercept_gamma": np.array([0.0, -1.0])}),
    "no gamma": lambda arrays: arrays.update({"classifier.intercept_gamma": np.array([0.0])}),
    "empty": lambda arrays: arrays.update({"classifier.vectors": np.zeros((0, 3)), "classifier.weights": np.zeros(0)}),
    "other dimensions": lambda arrays: arrays.update({"projection.W": np.ones((3, 5), np.float32)}),
    "other width": lambda arrays: arrays.update({"classifier.vectors": np.ones((5, 2), np.float32)}),
    "integers": lambda arrays: arrays.update({"projection.b": np.ones(3, np.int64)}),
    "a scalar": lambda arrays: arrays.update({"projection.b": np.ones((), np.float32)}),
    "no split": lambda arrays: arrays.update(
        {"split.hashes": np.zeros(0, np.uint64), "split.parts": np.zeros(0, np.int8)}
    ),
    "unsorted split": lambda arrays: arrays.update({"split.hashes": arrays["split.hashes"][::-1].copy()}),
    "parts": lambda arrays: arrays["split.parts"].fill(7),
    "missing": lambda arrays: arrays.pop("projection.W"),
    "another classifier": lambda arrays: arrays.pop("classifier.vectors"),
}
HEAD_FIELDS: list[dict[str, Any]] = [
    {"threshold": float("nan")},
    {"threshold": None},
    {"snapshot": float("inf")},
    {"options": []},
    {"metrics": 1},
    {"split": {"recipe": "paper", "seed": "x"}},
    {"projection": ["linear"]},
    {"projection": "?"},
    {"space": {}},
    {"space": SPACE.to_dict() | {"dim": 10**15}},
    {"arrays": 1},
    {"arrays": "../head"},
    {"digest": None},
    {"categories": ["a"]},
]


@pytest.mark.parametrize("case", HEADS)
def test_invalid_arrays_of_a_head_raise_head_error(case: str, tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    head().save(tmp_path)
    assert np.isfinite(Head.load(tmp_path, SPACE).decision_function(unit(3))).all()
    fields = json.loads((tmp_path / "head.json").read_text())
    arrays = {name: array.copy() for name, array in load((tmp_path / fields["arrays"]).read_bytes()).items()}
    HEADS[case](arrays)
    content = save(arrays)
    (tmp_path / fields["arrays"]).write_bytes(content)
    fields["digest"] = hashlib.blake2b(content, digest_size=16).hexdigest()
    (tmp_path / "head.json").write_text(json.dumps(fields))
    with pytest.raises(HeadError):
        Head.load(tmp_path)


@pytest.mark.parametrize("change", HEAD_FIELDS)
def test_invalid_fields_of_a_head_raise_head_error(change: dict[str, Any], tmp_path: Path) -> None:
    head().save(tmp_path)
    content = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(content | change))
    with pytest.raises(HeadError):
        Head.load(tmp_path)
    (tmp_path / "head.json").write_text(DEEP)
    with pytest.raises(HeadError):
        Head.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"real": []},
        {"real": [1.0, 2.0]},
        {"real": {"scores": [2.0, 1.0], "weights": [0.5, 0.5]}},
        {"fake": {"scores": [float("nan")], "weights": [1.0]}},
        {"fake": {"scores": [[1.0]], "weights": [[1.0]]}},
        {"fake": {"scores": [1.0, 2.0], "weights": [1.0]}},
        {"fake": {"scores": [1.0, 2.0], "weights": [1.5, -0.5]}},
        {"fake": {"scores": [1.0, 2.0], "weights": [0.5, 0.4]}},
        {"fake": {"scores": [1.0, 2.0], "weights": [0.5, float("nan")]}},
        {"fake": {"scores": [1.0]}},
        {"nearest": []},
        {"nearest": ["x"]},
        {"weights": [1]},
        {"weights": [float("inf"), 1]},
        {"offset": None},
        {"svm": {"slope": "x", "offset": 0}},
        {"svm": [1, 2]},
        {"head": "another"},
        {"held_out": "generators"},
    ],
)
def test_invalid_calibration_raises_head_error(change: dict[str, Any], tmp_path: Path) -> None:
    platt, scores = Platt(1.0, 0.0), np.arange(3.0)
    held = WeightedScores.make(scores)
    Calibration(platt, platt, (1.0, 1.0), 0.0, held, held, scores, "ab" * 16).save(tmp_path)
    Calibration.load(tmp_path, "ab" * 16)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HeadError):
        Calibration.load(tmp_path, "ab" * 16)
    path.write_text(DEEP)
    with pytest.raises(HeadError):
        Calibration.load(tmp_path, "ab" * 16)


# Imports


def npy(shape: str, kind: str = "'<f2'", content: bytes = b"\0\x3c" * 8) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.eye(2))
    return out.getvalue()


ARRAYS = {
    "several arrays": archive(),
    "overflow": npy("(4611686018427387904, 4)"),
    "overflow twice": npy("(1099511627776, 1099511627776)"),
    "too many rows": npy("(4294967296, 4)"),
    "digits": npy("(" + "9" * 40 + ",)"),
    "below 0": npy("(-2, 4)"),
    "no end": npy("(2, 4"),
    "objects": npy("(2, 4)", "'|O'"),
    "text": npy("(2, 4)", "'<U4'"),
    "nothing": b"",
    "one dimension": npy("(2,)"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_invalid_imported_vectors_raise_source_error(case: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "vectors.npy").write_bytes(ARRAYS[case])
    pyarrow.write_table(pytest.importorskip("pyarrow").table({"path": ["a", "b"]}), tmp_path / "rows.parquet")
    with pytest.raises(SourceError):
        import_rows(tmp_path, tmp_path / "store", SPACE, ImportDefaults("s"), normalise=True)


@pytest.mark.parametrize(
    "column",
    [
        {"path": [b"\xff\xfe", b"b"]},
        {"path": ["a", "b"], "thumbnail": ["x", "y"]},
        {"path": ["a", "b"], "thumbnail": [1, 2]},
        {"path": ["a", "b"], "label": [[1], [2]]},
        {"path": ["a", "b"], "label": [1e300, float("inf")]},
        {"path": [None, "b"]},
        {"other": [1, 2]},
    ],
)
def test_invalid_imported_rows_raise_source_error(column: dict[str, Any], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    np.save(tmp_path / "vectors.npy", unit(2))
    table = pyarrow.table(column)
    if isinstance(column.get("path", [0])[0], bytes):
        table = pyarrow.table({"path": pyarrow.array(column["path"], pyarrow.binary()).view(pyarrow.string())})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(SourceError):
        import_rows(tmp_path, tmp_path / "store", SPACE, ImportDefaults("s"))


# Spreadsheets


def test_names_like_formulas_are_escaped_for_spreadsheets() -> None:
    assert csv_line(Refusal("=HYPERLINK(1).png", "@x")).startswith("'=HYPERLINK(1).png,")
    assert csv_line(Refusal("@x.png", "-")).endswith(",'-,")  # the last column is the copied row


# Any change of a small file


ANY = settings(
    derandomize=True, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck), database=None
)
ANYTHING = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
ANYTHING |= st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)  # type: ignore[operator]


@pytest.mark.parametrize("where", ["manifest", "part", "space"])
def test_any_manifest_value_gives_rows_or_a_store_error(where: str, original_store: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original_store, tmp_path / "store"))
    path = path_of(folder, read_manifest(folder).number)
    original = path.read_text()
    keys = Store.open(folder).snapshot().column("keys").tolist()

    def part_of(fields: dict[str, Any]) -> dict[str, Any]:
        part: dict[str, Any] = {"manifest": fields, "part": fields["parts"][0], "space": fields["space"]}[where]
        return part

    @ANY
    @given(st.sampled_from(sorted(part_of(json.loads(original)))), ANYTHING)
    def check(name: str, value: Any) -> None:
        path.write_text(original)
        alter_manifest(folder, lambda fields: part_of(fields).update({name: value}))
        with suppress(StoreError):
            snapshot = Store.open(folder).snapshot()
            assert snapshot.column("keys").tolist() == keys[: len(snapshot)]
            snapshot.vectors()

    check()
