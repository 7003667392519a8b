"""A label that was corrected in a table reaches the stored row without its image being read again."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.errors import Damaged
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.progress import figures
from clipfake.show.progress_display import index_summary
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors
from clipfake.store.records import RowLabels
from clipfake.store.shard import Shard
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from fault_injection import Killed, calls_of, failing
from indexed import store_at, write_images
from rich.console import Console

IMAGES = 6
OTHER = Space("other", "d" * 64, 2, normalised=False)


class Unused(PlainEncoder):
    """An encoder for runs that must not embed an image."""

    def encode(self, images: Sequence[Any]) -> Any:
        raise AssertionError(f"{len(images)} images were embedded")


def table(folder: Path, *rows: str, header: str = "file_name,label,category,generator") -> Path:
    """Write a table of the images 0000.png, 0001.png, ...; each row is what follows the file name."""
    lines = [f"{i:04d}.png,{row}" for i, row in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return table(write_images(tmp_path / "data", IMAGES), *["real,face,"] * IMAGES)


@pytest.fixture
def store(data: Path, tmp_path: Path) -> Store:
    store = store_at(tmp_path / "s")
    index([data], store, PlainEncoder(), IndexOptions(rows_per_shard=4))
    return store


def correct(data: Path) -> Path:
    """Correct the label of image 1 and the category of image 4."""
    return table(data, "real,face,", "fake,face,gan", *["real,face,"] * 2, "real,cat,", "real,face,")


def labels(snapshot: Snapshot) -> dict[str, RowLabels]:
    return dict(zip(snapshot.column("keys").tolist(), snapshot.rows.row_labels(), strict=True))


CORRECTED = {
    "data/0001.png": RowLabels(1, -1, "data/gan", "gan", "face"),
    "data/0004.png": RowLabels(0, -1, "data", "", "cat"),
}


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """All that a correction of labels must not change, by key."""
    rows, thumbnails = snapshot.rows, snapshot.thumbnails(np.arange(len(snapshot)))
    columns = [rows.digests, rows.bytes, rows.mtimes, rows.widths, rows.heights, rows.formats, rows.paths]
    values = zip(*(column.tolist() for column in columns), snapshot.vectors().tolist(), thumbnails, strict=True)
    return dict(zip(rows.keys.tolist(), values, strict=True))


@pytest.mark.parametrize("options", [{}, {"sync": True}, {"rows_per_shard": 1}, {"part": (0, 1)}], ids=str)
def test_corrected_rows_keep_vector_and_file(data: Path, store: Store, options: dict[str, Any]) -> None:
    before = store.snapshot()
    report = index([correct(data)], store, Unused(), IndexOptions(**options))
    after = store.snapshot()
    assert (report.relabelled, report.known, report.added, report.replaced) == (2, IMAGES - 2, 0, 0)
    assert labels(after) == {**labels(before), **CORRECTED}
    assert facts(after) == facts(before)
    assert verify(store.folder).sound
    again = index([data], store, Unused(), IndexOptions(**options))
    assert (again.relabelled, again.known, store.snapshot().number) == (0, IMAGES, after.number)


def test_images_touched_since_are_relabelled_too(data: Path, store: Store) -> None:
    (data / "0001.png").touch()
    report = index([correct(data)], store, PlainEncoder())
    assert (report.relabelled, report.known) == (2, IMAGES - 2)
    assert labels(store.snapshot()).items() >= CORRECTED.items()


@pytest.mark.parametrize(
    ("row", "header", "kept"),
    [
        ("", "file_name,caption", IMAGES),  # neither label nor category
        ("unknown,face,", "file_name,label,category,generator", IMAGES),
        ("real,,", "file_name,label,category,generator", IMAGES),
    ],
)
def test_known_is_not_replaced_by_unknown(data: Path, store: Store, row: str, header: str, kept: int) -> None:
    before = labels(store.snapshot())
    report = index([table(data, *[row] * IMAGES, header=header)], store, Unused())
    assert (report.relabelled, report.labels_kept) == (0, kept)
    assert labels(store.snapshot()) == before
    console = Console(width=200)
    with console.capture() as shown:
        console.print(index_summary(report.to_dict()))
    assert f"{IMAGES} stored labels or categories kept" in shown.get()


def test_count_is_called_relabelled_everywhere(data: Path, store: Store) -> None:
    report = index([correct(data)], store, Unused())
    assert (report.to_dict()["relabelled"], figures(report)["relabelled"]) == (2, 2)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(index_summary(report.to_dict()))
    assert "2 relabelled" in shown.get()


def test_named_vectors_stay_attached(data: Path, store: Store) -> None:
    with named_vectors_writer(store.folder, "other", OTHER) as writer:
        vectors = np.arange(2 * IMAGES, dtype=np.float32).reshape(IMAGES, 2) + 1
        writer.put(np.arange(IMAGES), vectors)
        expected = dict(zip(writer.snapshot.column("keys").tolist(), vectors.tolist(), strict=True))
    index([correct(data)], store, Unused())
    for _ in range(2):
        snapshot = store.snapshot()
        found = open_named_vectors(store.folder, "other").vectors(snapshot, np.arange(IMAGES))
        assert dict(zip(snapshot.column("keys").tolist(), found.tolist(), strict=True)) == expected
        compact(store)


def test_index_and_undo_know_the_labels(data: Path, store: Store) -> None:
    build_index(store, "plain")
    before = store.snapshot()
    index([correct(data)], store, Unused())
    after = store.snapshot()
    [position] = np.flatnonzero(after.column("keys") == "data/0001.png")
    matches = after.search(after.vectors([position]), 1, after.column("labels") == 1)
    assert matches.rows.tolist() == [[position]]
    assert labels(store.undo(before.number)) == labels(before)


def test_new_category_gets_a_text_vector(tmp_path: Path) -> None:
    encoder = load_encoder(str(build_standin(tmp_path)))
    data, store = write_images(tmp_path / "data", IMAGES), Store.create(tmp_path / "s", encoder.space)
    index([table(data, *["real,face,"] * IMAGES)], store, encoder)
    index([correct(data)], store, encoder)
    texts = store.snapshot().texts
    assert np.allclose(texts["cat"], encoder.encode_texts(["cat"])[0], atol=1e-3)
    compact(store)
    assert store.snapshot().texts.keys() == {"face", "cat"}


def test_damaged_vector_is_not_copied(data: Path, store: Store) -> None:
    path = store.folder / "shards/000001.h5"
    content = bytearray(path.read_bytes())
    at = content.find(np.asarray(Shard(path).vectors[1]).tobytes())
    content[at + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="a vector of rows 0 to 255 was altered"):
        index([correct(data)], store, Unused())


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
def test_failure_anywhere_loses_no_row(data: Path, store: Store, tmp_path: Path, kill: bool) -> None:
    before = facts(store.snapshot())
    correct(data)

    def run(folder: Path) -> None:
        index([data], Store(folder), Unused(), IndexOptions(rows_per_shard=1))

    calls = calls_of(lambda: run(shutil.copytree(store.folder, tmp_path / "model")))
    for fail_at in range(1, calls + 1, 5):
        copy = Store(shutil.copytree(store.folder, tmp_path / f"{fail_at}"))
        with failing(fail_at, kill=kill), suppress(Killed, Exception):
            run(copy.folder)
        assert facts(copy.snapshot()) == before, f"call {fail_at} failed"
        run(copy.folder)
        assert labels(copy.snapshot()).items() >= CORRECTED.items(), f"call {fail_at} failed"
        assert facts(copy.snapshot()) == before, f"call {fail_at} failed"
