"""Named vectors: added later, kept through every change, and used for training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.detector.detector import VectorDetector
from clipfake.detector.head import head_folder, vector_names_of
from clipfake.errors import BadBlock, Damaged, EncoderError, NotEnoughRows, SpaceMismatch, StoreError
from clipfake.indexer.add_vectors import add_vectors
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.views.head_encoder import HeadEncoder
from clipfake.store.concatenated import ConcatenatedSnapshot, concatenate, concatenated_snapshot, space_of
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.info import info
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors, vector_names
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from fault_injection import Killed, failing

ROWS, DIM = 300, 8
OTHER = Space("other", "d" * 64, 5)


def vector_of(keys: Any) -> np.ndarray:
    """(n, dim) vectors of the other encoder, derived from the keys."""
    rows = [np.random.default_rng(list(key.encode())).normal(size=OTHER.dim) for key in keys]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def filled(store: Store, where: Any = None, name: str = "depth") -> None:
    with named_vectors_writer(store.folder, name, OTHER) as writer:
        positions = np.arange(len(writer.snapshot))[slice(None) if where is None else where]
        for batch in np.array_split(np.random.default_rng(0).permutation(positions), 5):
            writer.put(batch, vector_of(writer.snapshot.column("keys")[batch]))


def rows_with_vectors(snapshot: Snapshot, name: str = "depth") -> np.ndarray:
    """Mask of the rows with a vector; fails if one has the vector of another row."""
    column = open_named_vectors(snapshot.folder, name)
    vectors = column.vectors(snapshot, np.arange(len(snapshot)))
    present = ~np.isnan(vectors[:, 0])
    assert np.array_equal(present, ~column.missing(snapshot))
    assert np.allclose(vectors[present], vector_of(snapshot.column("keys")[present]), atol=1e-3)
    return present


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "s", space(DIM))
    with store.writer(rows_per_shard=120) as writer:
        for block in synthetic(ROWS, DIM, size=120):
            writer.append(block)
    return store


def test_named_vectors_can_be_added_later_in_parts(store: Store) -> None:
    shards = {path: path.stat().st_mtime_ns for path in (store.folder / "shards").iterdir()}
    filled(store, slice(0, 150))
    assert rows_with_vectors(store.snapshot()).sum() == 150
    filled(store, slice(130, 300))
    assert rows_with_vectors(store.snapshot()).all()
    assert {path: path.stat().st_mtime_ns for path in (store.folder / "shards").iterdir()} == shards
    assert len(list((store.folder / "columns/depth").iterdir())) == 4  # three shards and column.json
    assert [(c.name, c.dim, c.missing) for c in info(store).columns] == [("depth", 5, 0)]
    assert verify(store.folder).sound


def test_rows_keep_their_vectors_through_changes(store: Store) -> None:
    filled(store)
    before = store.snapshot()
    changed = next(iter(synthetic(ROWS, DIM, size=120))).take(slice(0, 10))
    fresh = {**vars(changed.rows), "digests": np.zeros(10, "V16")}
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) % 3 == 0)
        writer.append(Block(changed.space, Rows(**fresh), changed.vectors))
    after = store.snapshot()
    assert rows_with_vectors(after).sum() == len(after) - 10  # replaced images have no vector yet
    assert rows_with_vectors(before).all()
    store.undo(before.number)
    assert rows_with_vectors(store.snapshot()).all()


def test_compaction_keeps_named_vectors(store: Store) -> None:
    filled(store, slice(0, 290))
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) % 4 == 0)
    compact(store, rows_per_shard=100)
    snapshot = store.snapshot()
    assert (~rows_with_vectors(snapshot)).sum() == sum(i % 4 > 0 for i in range(290, 300))
    assert verify(store.folder).problems == ()
    named = {piece.file for piece in open_named_vectors(store.folder, "depth").pieces.values()}
    assert {path.name for path in (store.folder / "columns/depth").iterdir()} == named | {"column.json"}


@pytest.mark.parametrize(
    ("change", "step"),
    [("compact", 11), ("fill", 7), pytest.param("compact", 1, marks=pytest.mark.slow)],
)
def test_killed_process_loses_and_mixes_no_vector(
    store: Store, tmp_path: Path, change: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    filled(store, slice(0, 200))
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) % 5 == 0)
    kept = int(rows_with_vectors(store.snapshot()).sum())
    for fail_at in range(1, 2000, step):
        copy = Store(shutil.copytree(store.folder, tmp_path / f"{fail_at}"))
        ended = True
        with failing(fail_at, kill=True):
            try:
                compact(copy, rows_per_shard=90) if change == "compact" else filled(copy, slice(150, 240))
            except Killed:
                ended = False
        assert rows_with_vectors(copy.snapshot()).sum() >= kept
        assert verify(copy.folder).problems == ()
        compact(copy, rows_per_shard=90)  # leftovers do not prevent the next attempt
        filled(copy)
        assert rows_with_vectors(copy.snapshot()).all()
        if ended:
            break
    assert ended
    assert fail_at > 5


def test_damage_is_reported_and_repaired(store: Store) -> None:
    filled(store)
    path = next((store.folder / "columns/depth").glob("000002-*.f2"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    [problem] = verify(store.folder).problems
    assert problem.path == f"columns/depth/{path.name}"
    assert repair(store.folder).lost == 0
    assert verify(store.folder).sound
    assert rows_with_vectors(store.snapshot()).sum() == ROWS - 120
    filled(store)
    (store.folder / "columns/depth/column.json").write_text("{}")
    assert [p.path for p in verify(store.folder).problems] == ["columns/depth/column.json"]
    repair(store.folder)
    assert vector_names(store.folder) == []
    filled(store)
    assert rows_with_vectors(store.snapshot()).all()


def test_invalid_spaces_names_and_vectors_are_refused(store: Store) -> None:
    filled(store)
    with (
        pytest.raises(SpaceMismatch, match="depth"),
        named_vectors_writer(store.folder, "depth", Space("third", "e" * 64, 5)),
    ):
        pass
    for name in ("main", "../x", "", "Depth"):
        with pytest.raises(StoreError, match="invalid name"), named_vectors_writer(store.folder, name, OTHER):
            pass
    with (
        named_vectors_writer(store.folder, "depth", OTHER) as writer,
        pytest.raises(BadBlock, match="zero or not finite"),
    ):
        writer.put(np.array([3]), np.zeros((1, 5), np.float32))
    with pytest.raises(StoreError, match="has no vectors named colour"):
        open_named_vectors(store.folder, "colour")


def test_concatenated_parts_have_equal_weight(store: Store) -> None:
    filled(store)
    own = store.snapshot()
    both = concatenated_snapshot(own, ["main", "depth"])
    assert both.space == space_of(own.folder, own.space, ["main", "depth"])
    assert both.space.dim == DIM + 5
    assert not both.space.same(concatenated_snapshot(own, ["depth", "main"]).space)
    vectors = both.vectors()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = [one @ one[7] for one in (own.vectors(), vector_of(own.column("keys")))]
    assert np.allclose(vectors @ vectors[7], (cosine[0] + cosine[1]) / 2, atol=2e-3)
    found = both.search(vectors[:4], 5)
    assert np.allclose(found.similarity, -np.sort(-vectors[:4] @ vectors.T, axis=1)[:, :5], atol=1e-3)
    assert np.array_equal(next(iter(both.blocks(50))).vectors, vectors[:50])
    assert concatenated_snapshot(own, ["main"]) is own
    assert np.array_equal(own.vectors(slice(0, 3)), store.snapshot().vectors(slice(0, 3)))  # unchanged


def test_rows_without_a_vector_raise_an_error(store: Store) -> None:
    filled(store, slice(0, 299))
    with pytest.raises(NotEnoughRows, match="1 of 300 rows have no vector depth"):
        concatenated_snapshot(store.snapshot(), ["main", "depth"])


@pytest.fixture
def depth_model(tmp_path: Path) -> Path:
    """A minimal depth model of transformers with random weights."""
    import transformers

    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    torch.manual_seed(0)
    transformers.DPTForDepthEstimation(config).save_pretrained(tmp_path / "dpt")
    fields = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "dpt/preprocessor_config.json").write_text(json.dumps({**fields, "do_normalize": True}))
    return tmp_path / "dpt"


def test_depth_model_is_an_encoder(depth_model: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"depth:{depth_model}")
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(3)]
    vectors = encoder.encode(images)
    assert vectors.shape == (3, 256)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(encoder.encode(images[1:2])[0], vectors[1], atol=1e-4)
    assert encoder.space.encoder == f"depth:{depth_model}"
    with pytest.raises(EncoderError, match=r"the encoder depth:.* cannot be loaded"):
        load_encoder(f"depth:{tmp_path / 'none'}")


def test_changed_or_missing_files_get_no_vector(toy: Any, tmp_path: Path) -> None:
    from clipfake.indexer.index import index

    folder = tmp_path / "camera_a"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(toy.draw_image("camera_a", number))
    encoder = PlainEncoder()
    store = Store.create(tmp_path / "s", encoder.space)
    index([folder], store, encoder)
    (folder / "1.png").write_bytes(toy.draw_image("camera_a", 50))
    (folder / "2.png").unlink()
    report = add_vectors(store, "again", encoder)
    assert (report.added, report.missing) == (4, 2)
    assert "has changed since" in report.failed["camera_a/1.png"]
    assert "camera_a/2.png" in report.failed
    moved = folder.rename(tmp_path / "moved").joinpath("camera_a")
    moved.mkdir()
    for number in range(6):
        (moved / f"{number}.png").write_bytes(toy.draw_image("camera_a", number))
    again = add_vectors(store, "again", encoder, [moved])
    assert (again.known, again.added, again.missing) == (4, 2, 0)


def test_head_on_concatenated_vectors_trains_and_predicts(
    toy: Any, tmp_path: Path, depth_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipfake.cli import main

    folders = []
    for source in ("camera_a", "camera_b", "gan_a", "gan_b"):
        subfolder = tmp_path / "images" / ("fake" if source.startswith("gan") else "real") / source
        subfolder.mkdir(parents=True)
        for number in range(55):
            (subfolder / f"{number}.png").write_bytes(toy.draw_image(source, number))
    folders = [str(tmp_path / "images")]
    at = ["--store", str(tmp_path / "s"), "--json"]

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, *at])
        assert not ended.value.code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    run("index", "--folders", *folders, "--encoder", "plain")
    [output] = run("store", "column", "depth", "--encoder", f"depth:{depth_model}")
    assert (output["added"], output["missing"]) == (220, 0)
    [trained] = run("train", "--columns", "main,depth", "--epochs", "2", "--head", "guided")
    assert trained["head"]["test"]["n"] > 0
    assert vector_names_of(head_folder(tmp_path / "s", "guided")) == ("main", "depth")
    detector = VectorDetector.load(Store.open(tmp_path / "s"), "guided")
    assert isinstance(detector.snapshot, ConcatenatedSnapshot)
    image = tmp_path / "query.png"
    image.write_bytes(toy.draw_image("gan_a", 99))
    [verdict] = run("query", str(image), "--head", "guided")
    assert verdict["neighbors"]["fake"]
    [plain] = run("train", "--epochs", "2")
    assert plain["options"]["columns"] == ["main"]
    assert vector_names_of(head_folder(tmp_path / "s", "default")) == ("main",)


def test_service_uses_all_encoders_of_a_head(toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from dataclasses import replace

    from clipfake.detector.training.calibrate import calibrate
    from clipfake.detector.training.train import TrainOptions, train
    from clipfake.detector.training.triplet import TripletOptions
    from fastapi.testclient import TestClient

    store = toy.copy(tmp_path / "s")
    twin = PlainEncoder()
    with named_vectors_writer(store.folder, "again", twin.space) as writer:
        writer.put(np.arange(len(writer.snapshot)), writer.snapshot.vectors())
    names = ["main", "again"]
    snapshot = concatenated_snapshot(store.snapshot(), names)
    options = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=2), baselines=())
    head = train(snapshot, options).head
    head = replace(head, options={**head.options, "columns": names})
    folder = head_folder(store.folder, "default")
    head.save(folder)
    calibrate(snapshot, head, options).calibration.save(folder)
    with pytest.raises(SpaceMismatch):
        toy.app(store=store)
    with TestClient(
        toy.app(store=store, encoder=HeadEncoder(names, toy.encoder, {"again": twin})), base_url="http://localhost"
    ) as client:
        answer = client.post("/v1/query", content=toy.draw_image("gan_b", 77), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["answers"][0]["neighbors"]["fake"]


def test_parts_of_any_length_have_equal_weight() -> None:
    left, right = np.array([[3.0, 4.0]]), np.array([[0.0, 0.5]])
    assert concatenate([left, right])[0] * np.sqrt(2) == pytest.approx([0.6, 0.8, 0, 1])


def flipped(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("change", ["filled further", "compacted"])
def test_damaged_vectors_never_get_a_valid_checksum(store: Store, change: str) -> None:
    filled(store, slice(0, 200))
    flipped(next((store.folder / "columns/depth").glob("000002-*.f2")), 100)
    with store.writer() as writer:
        writer.delete(np.arange(ROWS) == 150)
    with pytest.raises(Damaged, match="checksum differs"):
        compact(store) if change == "compacted" else filled(store)
    repair(store.folder)
    compact(store)
    filled(store)
    assert rows_with_vectors(store.snapshot()).all()


def test_every_flipped_byte_is_reported_or_harmless(store: Store) -> None:
    filled(store, slice(0, 130))
    listing, [first, *_] = store.folder / "columns/depth/column.json", sorted(store.folder.glob("columns/depth/*.f2"))
    for path, step in ((listing, 7), (first, 211)):
        content = path.read_bytes()
        for position in range(0, len(content), step):
            altered = bytearray(content)
            altered[position] ^= 255
            path.write_bytes(altered)
            assert [problem.path for problem in verify(store.folder).problems] == [f"columns/depth/{path.name}"]
        path.write_bytes(content)
    assert verify(store.folder).sound


def test_unreadable_snapshot_does_not_block_adding_vectors(store: Store) -> None:
    (store.folder / "snapshots/000000.json").write_text("{")
    filled(store)
    assert rows_with_vectors(store.snapshot()).all()


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        (np.ones((2, 1), np.float32), r"shape \(2, 1\)"),
        (np.ones((1, 5), np.float32), r"shape \(1, 5\)"),
        (np.full((2, 5), 1e6, np.float32), "zero or not finite"),
        (np.full((2, 5), 1e-9, np.float32), "zero or not finite"),
    ],
)
def test_invalid_vectors_are_refused(store: Store, vectors: Any, text: str) -> None:
    with named_vectors_writer(store.folder, "depth", OTHER) as writer, pytest.raises(BadBlock, match=text):
        writer.put(np.array([3, 4]), vectors)
