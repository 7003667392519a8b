"""Exports can be imported as the same store, and files of other tools can be imported."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.core.atomic_files import temporary_name
from clipfake.errors import BadBlock, SourceError, SpaceMismatch, StoreError
from clipfake.store.exchange.export_rows import LAYOUTS, export_rows
from clipfake.store.exchange.import_rows import ImportDefaults, ImportFolder, foreign_space, import_rows, label_of
from clipfake.store.exchange.tables import NAMES, to_pandas
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store

pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

DIM, ROWS = 8, 700


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Three shards with thumbnails and texts, and some deleted rows."""
    store = Store.create(tmp_path_factory.mktemp("out") / "s", space(DIM))
    with store.writer(rows_per_shard=300) as writer:
        for block in synthetic(ROWS, DIM, size=300):
            thumbnails = tuple(key.encode() for key in block.rows.keys)
            texts = {name: np.full(DIM, 0.5, np.float32) for name in block.rows.categories.tolist()}
            writer.append(Block(block.space, block.rows, block.vectors, thumbnails, texts))
        writer.delete(np.arange(ROWS) % 5 == 0)
    return store.snapshot()


def check_equal(first: Snapshot, second: Snapshot) -> None:
    assert first.space == second.space
    for column in fields(Rows):
        assert first.column(column.name).tolist() == second.column(column.name).tolist(), column.name
    assert np.array_equal(first.vectors(dtype=np.float16), second.vectors(dtype=np.float16))
    positions = np.arange(len(first))
    assert first.thumbnails(positions) == second.thumbnails(positions)
    used = set(first.column("categories").tolist())  # texts of deleted rows are not exported
    texts = {k: v.tolist() for k, v in first.texts.items() if k in used}
    assert texts == {k: v.tolist() for k, v in second.texts.items()}


@pytest.mark.parametrize("layout", ["clip-retrieval", "numpy"])
def test_export_and_import_restore_the_store(
    snapshot: Snapshot, tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.store.exchange.export_rows.BLOCK_ROWS", 64)
    monkeypatch.setattr("clipfake.store.exchange.import_rows.BLOCK_ROWS", 50)
    report = export_rows(snapshot, tmp_path / "out", layout, rows_per_file=250)
    assert (report.rows, report.layout) == (len(snapshot), layout)
    back = import_rows(tmp_path / "out", tmp_path / "back")
    assert (back.rows, back.added) == (len(snapshot), len(snapshot))
    check_equal(snapshot, Store.open(tmp_path / "back").snapshot())
    again = import_rows(tmp_path / "out", tmp_path / "back")
    assert (again.known, again.added, again.snapshot) == (len(snapshot), 0, back.snapshot)


def test_clip_retrieval_layout(snapshot: Snapshot, tmp_path: Path) -> None:
    export_rows(snapshot, tmp_path / "out", "clip-retrieval", rows_per_file=50)
    numbers = [f"{n:02d}" for n in range(12)]  # zero-padded, because readers sort by name
    for kind, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        assert sorted(p.name for p in (tmp_path / "out" / kind).iterdir()) == [f"{kind}_{n}.{suffix}" for n in numbers]
    vectors = np.load(tmp_path / "out/img_emb/img_emb_03.npy")
    rows = parquet.read_table(tmp_path / "out/metadata/metadata_03.parquet").to_pydict()
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, snapshot.vectors(slice(150, 200), np.float16))
    assert rows["image_path"] == snapshot.column("paths")[150:200].tolist()
    assert rows["caption"] == snapshot.column("categories")[150:200].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_of_a_filter(snapshot: Snapshot, tmp_path: Path, layout: Any) -> None:
    fake = snapshot.column("labels") == 1
    assert export_rows(snapshot, tmp_path / "out", layout, fake).rows == fake.sum()
    assert export_rows(snapshot, tmp_path / "none", layout, np.zeros(len(snapshot), bool)).rows == 0
    assert not (tmp_path / "none/text_emb").exists()  # clip-retrieval would take an empty folder for a damaged one
    [path] = (tmp_path / "out").rglob("*.parquet")
    assert parquet.read_table(path)["key"].to_pylist() == snapshot.column("keys")[fake].tolist()


def test_export_does_not_overwrite(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(StoreError, match="not empty"):
        export_rows(snapshot, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_to_pandas(snapshot: Snapshot) -> None:
    table = to_pandas(snapshot)
    assert list(table.columns) == list(NAMES.values())
    assert table["key"].tolist() == snapshot.column("keys").tolist()
    assert table.groupby("label").size().sum() == len(snapshot)
    assert bytes.fromhex(table["digest"][3]) == snapshot.column("digests")[3].tobytes()
    assert len(to_pandas(snapshot, snapshot.column("labels") == 1)) == (snapshot.column("labels") == 1).sum()


FOREIGN = Space("their-clip", "a" * 64, 4)


def foreign(folder: Path, rows: int = 6, scale: float = 1.0, **columns: Any) -> Path:
    """Two files as clip-retrieval itself writes them."""
    vectors = np.random.default_rng(1).normal(size=(rows, 4))
    vectors *= scale / np.linalg.norm(vectors, axis=1, keepdims=True)
    fields = {"image_path": [f"/data/{i}.jpg" for i in range(rows)], "caption": ["a cat"] * rows, **columns}
    for number, part in enumerate((slice(0, 4), slice(4, rows))):
        for kind in ("img_emb", "metadata"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / f"img_emb/img_emb_{number}.npy", vectors[part].astype(np.float16))
        table = pyarrow.table({name: values[part] for name, values in fields.items()})
        parquet.write_table(table, folder / f"metadata/metadata_{number}.parquet")
    return folder


def test_import_of_clip_retrieval_files(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs", label=["real", "fake", "0", "1", None, "FAKE"], camera=list("aabbcc"))
    defaults = ImportDefaults(columns={"source": "camera", "category": "caption"})
    assert import_rows(folder, tmp_path / "s", FOREIGN, defaults).added == 6
    rows = Store.open(tmp_path / "s").snapshot().rows
    assert rows.keys.tolist() == [f"{source}/data/{i}.jpg" for i, source in enumerate("aabbcc")]
    assert rows.labels.tolist() == [0, 1, 0, 1, -1, 1]
    assert rows.generators.tolist() == ["", "a", "", "b", "", "c"]
    assert set(rows.categories.tolist()) == {"a cat"}
    assert import_rows(folder, tmp_path / "s", FOREIGN, defaults).known == 6


def test_named_space_can_be_searched(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs")
    named = foreign_space("laion's b32", ImportFolder.open(folder).dim)
    import_rows(folder, tmp_path / "s", named, ImportDefaults("laion", 0))
    snapshot = Store.open(tmp_path / "s").snapshot()
    assert snapshot.search(snapshot.vectors([2]), 1).rows.tolist() == [[2]]
    assert not named.same(foreign_space("another", 4))


def test_vectors_are_rejected_or_normalised(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs", scale=3.0)
    with pytest.raises(BadBlock, match=r"length 3\.0"):
        import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))
    import_rows(folder, tmp_path / "t", FOREIGN, ImportDefaults("x"), normalise=True)
    lengths = np.linalg.norm(Store.open(tmp_path / "t").snapshot().vectors(), axis=1)
    assert np.allclose(lengths, 1, atol=1e-3)


def change_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        np.save(path, change(np.load(path)))

    return damage


def not_a_number(vectors: np.ndarray) -> np.ndarray:
    vectors[1] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "metadata/metadata_1.parquet").unlink(), SourceError, "number 1 is in one of them only"),
        (change_array("img_emb/img_emb_1.npy", lambda v: v[:1]), SourceError, "1 vectors"),
        (change_array("img_emb/img_emb_1.npy", lambda v: v[:, :2]), SourceError, r"\[2, 4\] dimensions"),
        (change_array("img_emb/img_emb_0.npy", not_a_number), BadBlock, "not finite"),
        (change_array("img_emb/img_emb_0.npy", np.zeros_like), BadBlock, "zero"),
        (change_array("img_emb/img_emb_0.npy", lambda v: v.astype(int)), SourceError, "expected floats"),
        (lambda f: (f / "metadata/metadata_0.parquet").write_bytes(b"PAR1"), SourceError, "not a readable parquet"),
        (lambda f: (f / "img_emb/img_emb_0.npy").write_bytes(b""), SourceError, "not a readable numpy"),
        (lambda f: (f / "clipfake.json").write_text("{}"), SourceError, "not of this release"),
        (lambda f: [p.unlink() for p in f.rglob("*.npy")], SourceError, "neither vectors.npy"),
    ],
)
def test_unusable_files_are_reported(tmp_path: Path, damage: Any, error: type[Exception], message: str) -> None:
    folder = foreign(tmp_path / "theirs")
    damage(folder)
    with pytest.raises(error, match=message):
        import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))


@pytest.mark.parametrize(
    ("columns", "defaults", "error", "message"),
    [
        ({}, ImportDefaults(), SourceError, "does not say where its rows come from"),
        ({"label": ["perhaps"] * 6}, ImportDefaults("x"), SourceError, "the label perhaps"),
        ({"label": [0.0, 1.0, 0.7, 0.0, 0.0, 0.0]}, ImportDefaults("x"), SourceError, "the label 0.7"),
        ({}, ImportDefaults("x", columns={"label": "y"}), SourceError, "has no column y"),
        ({"image_path": ["a", "b", "c", None, "e", "f"]}, ImportDefaults("x"), SourceError, "row 3 has no image_path"),
        ({"image_path": ["a", "b", "c", "a", "e", "f"]}, ImportDefaults("x"), BadBlock, "x/a"),
    ],
)
def test_unusable_foreign_table_is_reported(
    tmp_path: Path, columns: dict[str, Any], defaults: ImportDefaults, error: type[Exception], message: str
) -> None:
    folder = foreign(tmp_path / "theirs", **columns)
    with pytest.raises(error, match=message):
        import_rows(folder, tmp_path / "s", FOREIGN, defaults)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: set_manifest(f, space={"encoder": "x"}), "does not name its space"),
        (lambda f: set_manifest(f, texts=["only one"]), "texts"),
        (lambda f: (f / "texts.npy").unlink(), "texts.npy is not a readable numpy array"),
        (lambda f: set_column(f, "digest", [b"short"] * 40), "digest"),
        (lambda f: set_column(f, "width", ["wide"] * 40), "width"),
    ],
)
def test_altered_export_is_reported(tmp_path: Path, damage: Any, message: str) -> None:
    [block] = synthetic(40, 4, size=40)
    texts = {name: np.ones(4, np.float32) for name in block.rows.categories.tolist()}
    with Store.create(tmp_path / "s", block.space).writer() as writer:
        writer.append(Block(block.space, block.rows, block.vectors, (), texts))
    export_rows(Store.open(tmp_path / "s").snapshot(), tmp_path / "out", "numpy")
    damage(tmp_path / "out")
    with pytest.raises(SourceError, match=message):
        import_rows(tmp_path / "out", tmp_path / "again")


def set_manifest(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "clipfake.json").read_text())
    (folder / "clipfake.json").write_text(json.dumps({**content, **changes}))


def set_column(folder: Path, name: str, values: list[Any]) -> None:
    table = parquet.read_table(folder / "rows.parquet")
    index = table.column_names.index(name)
    parquet.write_table(table.set_column(index, name, [values]), folder / "rows.parquet")


def test_flipped_bytes_are_harmless_or_reported(snapshot: Snapshot, tmp_path: Path) -> None:
    export_rows(snapshot, tmp_path / "out", "numpy")
    path, errors = tmp_path / "out/rows.parquet", 0
    content = path.read_bytes()
    for offset in np.linspace(4, len(content) - 5, 60).astype(int):
        altered = bytearray(content)
        altered[offset] ^= 255
        path.write_bytes(altered)
        try:
            rows = import_rows(tmp_path / "out", tmp_path / f"{offset}").rows
            assert rows == len(snapshot)
        except (SourceError, BadBlock):
            errors += 1
    assert errors > 20


def test_unknown_or_other_encoder_is_rejected(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match="does not say which encoder"):
        import_rows(foreign(tmp_path / "theirs"), tmp_path / "s")
    with pytest.raises(SpaceMismatch, match="of 4 dimensions"):
        import_rows(tmp_path / "theirs", tmp_path / "s", space(8))
    export_rows(snapshot, tmp_path / "out", "numpy")
    with pytest.raises(SpaceMismatch):
        import_rows(tmp_path / "out", tmp_path / "s", Space("other", "b" * 64, DIM))
    export_rows(snapshot, tmp_path / "rows", "parquet")
    with pytest.raises(SourceError, match="without vectors"):
        import_rows(tmp_path / "rows", tmp_path / "s")


@pytest.mark.parametrize(
    ("value", "label"), [("real", 0), (" Fake ", 1), (True, 1), (0.0, 0), (None, -1), (float("nan"), -1), (-1, -1)]
)
def test_label_spellings(value: Any, label: int) -> None:
    assert label_of(value) == label


def test_export_and_import_commands(snapshot: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clipfake.cli import main

    def run_json(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["store", *map(str, arguments), "--json"])
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    output = run_json("export", "--to", tmp_path / "out", "--label", "fake", "--store", snapshot.folder)
    assert output["rows"] == (snapshot.column("labels") == 1).sum()
    assert run_json("import", tmp_path / "out", "--store", tmp_path / "s")["added"] == output["rows"]
    foreign(tmp_path / "theirs", camera=list("aabbcc"))
    arguments = ("import", tmp_path / "theirs", "--space", "theirs", "--column", "source=camera", "--label", "real")
    assert run_json(*arguments, "--store", tmp_path / "t")["added"] == 6
    assert Store.open(tmp_path / "t").snapshot().rows.labels.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["index", "--kind", "quick"], "'quick' is not one of 'auto'"),
        (["import", ".", "--column", "label"], "label names no column"),
        (["import", ".", "--column", "colour=red"], "colour is none of label"),
    ],
)
def test_wrong_usage_of_the_commands(
    snapshot: Snapshot, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    from clipfake.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["store", *arguments, "--store", str(snapshot.folder)])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def shards(folder: Path, **numbers: int) -> Path:
    """Pairs of files, named by what follows img_emb_ and metadata_; each has rows named by its own number."""
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name, number in numbers.items():
        kind, _, written = name.partition("__")
        if kind == "img_emb":
            np.save(folder / f"img_emb/img_emb_{written}.npy", np.eye(4, dtype=np.float16)[[number, number]])
        else:
            table = pyarrow.table({"image_path": [f"{number}/a.jpg", f"{number}/b.jpg"]})
            parquet.write_table(table, folder / f"metadata/metadata_{written}.parquet")
    return folder


def test_every_vector_is_under_the_name_of_its_row(tmp_path: Path) -> None:
    names = {f"{kind}__{n:02d}": n for n in range(3) for kind in ("img_emb", "metadata")}
    import_rows(shards(tmp_path / "f", **names), tmp_path / "s", FOREIGN, ImportDefaults("x"))
    snapshot = Store.open(tmp_path / "s").snapshot()
    for key, vector in zip(snapshot.column("keys").tolist(), snapshot.vectors(), strict=True):
        assert key.split("/")[1] == str(vector.argmax())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_emb__1", "img_emb__01", "metadata__1", "metadata__01"], "two files of number 1, img_emb_01"),
        (["img_emb__1", "img_emb__01", "metadata__1"], "two files of number 1"),
        (["img_emb__1", "metadata__1", "metadata__01"], "two files of number 1"),
        (["img_emb__00", "metadata__0"], "number 0 is in one of them only"),
        (["img_emb__0", "metadata__0", "img_emb__1"], "number 1 is in one of them only"),
        (["img_emb__0", "metadata__0", "metadata__1"], "number 1 is in one of them only"),
    ],
)
def test_files_that_are_no_pairs_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    folder = shards(tmp_path / "f", **dict.fromkeys(names, 1))
    with pytest.raises(SourceError, match=message):
        import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))
    assert not (tmp_path / "s").exists()


def test_leftovers_beside_an_export_are_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export_rows(snapshot, folder, rows_per_file=200)
    for kind, suffix in (("img_emb", "npy"), ("metadata", "parquet")):
        source = folder / kind / f"{kind}_2.{suffix}"
        source.with_name(f"{kind}_9.{suffix}").write_bytes(source.read_bytes())
    with pytest.raises(SourceError, match="but 560 were exported"):
        import_rows(folder, tmp_path / "s")


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "f")
    (folder / "vectors.npy").write_bytes((folder / "img_emb/img_emb_0.npy").read_bytes())
    (folder / "rows.parquet").write_bytes((folder / "metadata/metadata_0.parquet").read_bytes())
    with pytest.raises(SourceError, match="holds two imports"):
        import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))


def one_pair(folder: Path, table: Any, vectors: Any = None) -> Path:
    """A folder of vectors.npy and rows.parquet."""
    folder.mkdir()
    np.save(folder / "vectors.npy", np.eye(4, dtype=np.float32)[: table.num_rows] if vectors is None else vectors)
    parquet.write_table(table, folder / "rows.parquet")
    return folder


def with_classes(names: list[str]) -> Any:
    """Rows whose labels are numbers of classes, as Hugging Face's `datasets` writes them."""
    features = {"label": {"names": names, "_type": "ClassLabel"}, "path": {"dtype": "string", "_type": "Value"}}
    table = pyarrow.table({"path": ["a", "b", "c", "d"], "label": pyarrow.array([0, 1, -1, None], pyarrow.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize(("names", "labels"), [(["real", "fake"], [0, 1, -1, -1]), (["Fake", "Real"], [1, 0, -1, -1])])
def test_class_names_decide_what_numbers_mean(tmp_path: Path, names: list[str], labels: list[int]) -> None:
    import_rows(one_pair(tmp_path / "f", with_classes(names)), tmp_path / "s", FOREIGN, ImportDefaults("x"))
    assert Store.open(tmp_path / "s").snapshot().column("labels").tolist() == labels


def label_table(values: Any, name: str = "label") -> Any:
    return pyarrow.table({"path": ["a", "b"], name: values})


REFUSED = [
    (with_classes(["cat", "dog"]), {}, "the label cat is neither .* .the classes are cat, dog"),
    (with_classes(["real"]), {}, "the label 1 .a class whose name is not known. is neither"),
    (label_table([0.0, 0.5]), {}, "the label 0.5 is neither"),
    (label_table([b"real", b"fake"]), {}, "the label b'real' is neither"),
    (label_table([0, 1], "Label"), {}, "--column label=Label"),
    (label_table([True, False], "is_real"), {"label": "is_real"}, "1 in the column is_real seems to mean real"),
    (label_table([1, 0], "real"), {"label": "real"}, "1 in the column real seems to mean real"),
    (pyarrow.table([["a", "b"], [0, 1], [1, 0]], ["path", "label", "label"]), {}, "several columns named label"),
    (pyarrow.table([["a", "b"], ["c", "d"]], ["path", "path"]), {}, "several columns named path"),
    (pyarrow.table({"path": [["a"], ["b"]]}), {}, "is not a text"),
]


@pytest.mark.parametrize(("table", "columns", "message"), REFUSED, ids=range(len(REFUSED)))
def test_doubtful_columns_are_refused(tmp_path: Path, table: Any, columns: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        import_rows(one_pair(tmp_path / "f", table), tmp_path / "s", FOREIGN, ImportDefaults("x", columns=columns))
    assert not len(Store.open(tmp_path / "s"))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pyarrow.array(["fake", "real"]).dictionary_encode(), [1, 0]),
        (pyarrow.array([True, False]), [1, 0]),
        (pyarrow.array([1.0, float("nan")]), [1, -1]),
        (pyarrow.DictionaryArray.from_arrays(pyarrow.array([1, 0], pyarrow.int8()), pyarrow.array([1, 0])), [0, 1]),
    ],
    ids=["dictionary", "bool", "float", "dictionary of numbers"],
)
def test_labels_of_any_arrow_type(tmp_path: Path, values: Any, labels: list[int]) -> None:
    import_rows(one_pair(tmp_path / "f", label_table(values)), tmp_path / "s", FOREIGN, ImportDefaults("x"))
    assert Store.open(tmp_path / "s").snapshot().column("labels").tolist() == labels


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_arrays_of_any_type_and_order(tmp_path: Path, dtype: str, order: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4))
    vectors = np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype, order=order)
    folder = one_pair(tmp_path / "f", pyarrow.table({"path": ["a", "b", "c"]}), vectors)
    import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))
    assert np.allclose(Store.open(tmp_path / "s").snapshot().vectors(), vectors.astype(np.float32), atol=1e-3)


def test_repeated_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.store.exchange.import_rows.BLOCK_ROWS", 1)
    folder = one_pair(tmp_path / "f", pyarrow.table({"path": ["/a.jpg", "b.jpg", "a.jpg"]}))
    with pytest.raises(BadBlock, match=r"several rows with the key x/a\.jpg"):
        import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))


def test_paths_that_look_alike_stay_distinct(tmp_path: Path) -> None:
    paths = ["caf\u00e9", "cafe\u0301", "CAFE"]
    import_rows(one_pair(tmp_path / "f", pyarrow.table({"path": paths})), tmp_path / "s", FOREIGN, ImportDefaults("x"))
    export_rows(Store.open(tmp_path / "s").snapshot(), tmp_path / "out", "numpy")
    import_rows(tmp_path / "out", tmp_path / "back")
    snapshot = Store.open(tmp_path / "back").snapshot()
    assert snapshot.column("keys").tolist() == [f"x/{path}" for path in paths]
    assert np.array_equal(snapshot.vectors(), np.eye(4)[:3])


def test_corrected_tables_are_imported_again(tmp_path: Path) -> None:
    def run(number: int, labels: list[str], vectors: Any) -> tuple[int, int, int]:
        folder = one_pair(tmp_path / f"{number}", label_table(labels), vectors)
        report = import_rows(folder, tmp_path / "s", FOREIGN, ImportDefaults("x"))
        return report.known, report.replaced, report.relabelled

    run(0, ["real", "real"], np.eye(4)[:2])
    assert run(1, ["real", "fake"], np.eye(4)[:2]) == (1, 0, 1)
    assert run(2, ["real", "fake"], np.eye(4)[[3, 1]]) == (1, 1, 0)
    snapshot = Store.open(tmp_path / "s").snapshot()
    values = zip(snapshot.rows.labels.tolist(), snapshot.vectors().argmax(axis=1).tolist(), strict=True)
    assert dict(zip(snapshot.column("keys").tolist(), values, strict=True)) == {"x/a": (0, 3), "x/b": (1, 1)}


@pytest.mark.parametrize("value", [0.9, 5, -2])
def test_altered_label_of_an_export_is_refused(snapshot: Snapshot, tmp_path: Path, value: float) -> None:
    export_rows(snapshot, tmp_path / "out", "numpy", np.arange(3))
    table = parquet.read_table(tmp_path / "out/rows.parquet")
    at = table.column_names.index("label")
    parquet.write_table(table.set_column(at, "label", pyarrow.array([value] * 3)), tmp_path / "out/rows.parquet")
    with pytest.raises(SourceError, match="the column label has been altered"):
        import_rows(tmp_path / "out", tmp_path / "s")


def test_interrupted_export_is_not_imported(snapshot: Snapshot, tmp_path: Path) -> None:
    export_rows(snapshot, tmp_path / "rows", "numpy")
    unfinished = (tmp_path / "rows").rename(tmp_path / temporary_name("rows"))  # as a killed process leaves it
    with pytest.raises(SourceError, match="was left by an export that was interrupted"):
        ImportFolder.open(unfinished)


def test_export_spares_a_neighbour_named_tmp(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp/thesis.tex").touch()
    export_rows(snapshot, tmp_path / "out", "numpy", np.arange(3))
    assert (tmp_path / "out.tmp/thesis.tex").exists()
