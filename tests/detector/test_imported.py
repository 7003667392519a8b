"""Heads that others have trained: read without running code, checked against the vectors, used like trained ones."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.api import index
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.cli import main
from clipfake.detector.detector import VectorDetector
from clipfake.detector.evaluation.leave_one_out import leave_one_out
from clipfake.detector.head import head_folder
from clipfake.detector.imported.head_format import FORMATS, format_named, read_linear_head
from clipfake.detector.imported.import_head import import_head
from clipfake.detector.verdict import Verdict
from clipfake.errors import HeadError, NotEnoughRows, SpaceMismatch
from clipfake.indexer.index_run import IndexOptions
from clipfake.session import Session
from clipfake.store.concatenated import concatenated_snapshot
from clipfake.store.named_vectors import ViewRecord, create_view, named_vectors_writer
from clipfake.store.space import Space
from clipfake.store.store import Store
from PIL import Image
from safetensors.numpy import save_file
from tiny_models import SMALL
from tiny_models import saved as saved_model

FOREIGN = Path(__file__).parents[3] / "shared" / "data" / "foreign"
PUBLISHED = {
    "univfd_fc_weights.pth": ("univfd", "weight"),
    **{
        f"clip_cues_linear_probe_{name}.ckpt": ("clip-cues", "model.classification_head.fc.weight")
        for name in ("cnnspot", "combined", "synthbuster", "synthclic")
    },
}
L14 = Space("openai/clip-vit-large-patch14", "a" * 64, 768, normalised=False)
L14_336 = Space("openai/clip-vit-large-patch14-336", "b" * 64, 1024, normalised=False)
LINEAR, UNIVFD = FORMATS["linear"], FORMATS["univfd"]
ROWS = 400
CLIP_FIELDS = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": 32,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def weights(dim: int = 6, rows: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(dim)
    return {"weight": rng.normal(size=(rows, dim)).astype(np.float32), "bias": rng.normal(size=rows).astype(np.float32)}


def saved(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays in the format of the path's ending."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({name: array.tolist() for name, array in arrays.items()}))
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 8-d vectors, with the vectors `crops` of CLIP ViT-L/14 and `pooled` of ViT-L/14-336, drawn at random.

    The length of `crops` depends on the label, their direction does not.
    """
    store = Store.create(tmp_path_factory.mktemp("imported") / "store", space(8))
    with store.writer() as writer:
        for block in synthetic(ROWS, 8):
            writer.append(block)
    rng, labels = np.random.default_rng(1), store.snapshot().column("labels")
    for name, its_space in (("crops", L14), ("pooled", L14_336)):
        vectors = rng.normal(size=(ROWS, its_space.dim)).astype(np.float32) + 1
        with named_vectors_writer(store.folder, name, its_space) as named:
            named.put(np.arange(ROWS), vectors * (0.2 + 0.1 * labels[:, None]))
    return store


@pytest.fixture(scope="module")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of the format univfd that measures how long a vector is."""
    arrays = {"weight": np.full((1, 768), 0.01, np.float32), "bias": np.array([-2.0], np.float32)}
    return saved(tmp_path_factory.mktemp("head") / "fc.pth", arrays)


@pytest.mark.skipif(not FOREIGN.is_dir(), reason="the published heads are not beside this checkout")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_head_gives_the_logits_of_torch(name: str) -> None:
    format_name, weight = PUBLISHED[name]
    head_format = FORMATS[format_name]
    state = torch.load(FOREIGN / name, weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    layer = torch.nn.Linear(head_format.dim, 1)
    layer.load_state_dict({"weight": state[weight], "bias": state[weight.replace("weight", "bias")]})
    vectors = np.random.default_rng(0).normal(size=(500, head_format.dim)).astype(np.float32) * 0.4
    logits = read_linear_head(FOREIGN / name, head_format).decision_function(vectors)
    with torch.inference_mode():
        single = layer(torch.from_numpy(vectors))[:, 0].numpy()
        double = layer.double()(torch.from_numpy(vectors).double())[:, 0].numpy()
    assert np.abs(logits - double).max() < 1e-12
    assert np.abs(logits - single).max() < 2e-5  # float32's own rounding
    # stored as float16, a vector differs by at most 2^-11 of each number, or by half the smallest number it can hold
    stored = read_linear_head(FOREIGN / name, head_format).decision_function(vectors.astype(np.float16))
    weight_sizes = np.abs(state[weight].numpy()[0])
    assert (np.abs(stored - logits) <= (np.abs(vectors) * 2.0**-11 + 2.0**-25) @ weight_sizes + 1e-9).all()


@pytest.mark.parametrize("ending", ["pth", "ckpt", "safetensors", "npz", "json"])
def test_every_kind_of_file_gives_the_same_head(tmp_path: Path, ending: str) -> None:
    arrays = weights()
    head = read_linear_head(saved(tmp_path / f"head.{ending}", arrays), LINEAR)
    vectors = np.random.default_rng(0).normal(size=(9, 6))
    expected = vectors @ arrays["weight"][0].astype(float) + float(arrays["bias"][0])
    assert np.allclose(head.decision_function(vectors), expected, rtol=0, atol=1e-12)


def test_two_classes_are_one_logit_and_either_may_be_fake(tmp_path: Path) -> None:
    arrays = weights(rows=2)
    path, vectors = saved(tmp_path / "two.npz", arrays), np.random.default_rng(0).normal(size=(50, 6))
    logits = torch.from_numpy(vectors @ arrays["weight"].T.astype(float) + arrays["bias"])
    fake = torch.softmax(logits, 1)[:, 1].numpy()
    scores = read_linear_head(path, LINEAR).decision_function(vectors)
    assert np.allclose(1 / (1 + np.exp(-scores)), fake, atol=1e-12)
    other = read_linear_head(path, LINEAR, fake_class=0)
    assert np.array_equal(other.decision_function(vectors), -scores)


class Malicious:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def code_in_torch_file(path: Path) -> Path:
    torch.save({"weight": Malicious(path.parent / "ran")}, path)
    return path


def code_in_array(path: Path) -> Path:
    np.savez(path, weight=np.array([Malicious(path.parent / "ran")], object))
    return path


def expanded(path: Path) -> Path:
    torch.save({"weight": torch.zeros(1).expand(1, 1 << 40), "bias": torch.zeros(1)}, path)
    return path


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight.npy", bytes(1 << 27))
    return path


def claiming(path: Path) -> Path:
    """An array whose header claims more than its data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (1, 1 << 44)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", buffer.getvalue() + bytes(64))
    return path


def file_of(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def arrays_of(**changes: Any) -> Callable[[Path], Path]:
    return lambda path: saved(path, {**weights(), **{name: np.asarray(value) for name, value in changes.items()}})


HOSTILE: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "code in a torch file": ("x.pth", code_in_torch_file, "no readable .pth file"),
    "code in an array": ("x.npz", code_in_array, "no readable .npz file"),
    "a plain pickle": ("x.pt", file_of(b"\x80\x02cos\nsystem\nU\x04true\x85R."), "no zip archive"),
    "an expanded tensor": ("x.pth", expanded, "1,099,511,627,776 numbers"),
    "a zip bomb": ("x.npz", bomb, "bytes when it is decompressed"),
    "a false header": ("x.npz", claiming, "no readable .npz file"),
    "a huge file": ("x.json", file_of(b"[" * ((1 << 26) + 1)), "cannot be read"),
    "deep JSON": ("x.json", file_of(b"[" * 100_000), "no readable .json file"),
    "a huge number": ("x.json", file_of(b'{"weight": [[1' + b"0" * 400 + b'.0]], "bias": [0]}'), "NaN or infinity"),
    "beyond float32": ("x.json", file_of(b'{"weight": [[1e300]], "bias": [0]}'), "beyond float32"),
    "texts": ("x.json", file_of(b'{"weight": ["a"], "bias": [0]}'), "no readable .json file"),
    "no object": ("x.json", file_of(b"[1, 2]"), "expected an object"),
    "truncated": ("x.safetensors", file_of(b"\x10\x00\x00"), "no readable .safetensors file"),
    "an empty file": ("x.pth", file_of(b""), "no zip archive"),
    "NaN": ("x.npz", arrays_of(weight=np.full((1, 6), np.nan)), "NaN or infinity"),
    "zeros": ("x.npz", arrays_of(weight=np.zeros((1, 6))), "the same score"),
    "three classes": ("x.npz", arrays_of(weight=np.ones((3, 6)), bias=np.ones(3)), "shape \\(3, 6\\)"),
    "another bias": ("x.npz", arrays_of(bias=np.ones(2)), "bias of shape"),
    "a convolution": ("x.npz", arrays_of(weight=np.ones((1, 6, 1, 1))), "shape \\(1, 6, 1, 1\\)"),
    "no number": ("x.npz", arrays_of(weight=np.ones((1, 0))), "shape \\(1, 0\\)"),
    "a further array": ("x.npz", arrays_of(mean=np.ones(6)), "it holds weight"),
    "another kind": ("x.pkl", file_of(b"\x80"), "unknown ending"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path, case: str) -> None:
    name, write, message = HOSTILE[case]
    with pytest.raises(HeadError, match=message):
        read_linear_head(write(tmp_path / name), LINEAR)
    assert not (tmp_path / "ran").exists()


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    for name in ("missing.pth", "folder.pth"):
        with pytest.raises(HeadError, match="cannot be read"):
            read_linear_head(tmp_path / name, LINEAR)


def test_format_with_one_logit_refuses_other_shapes(tmp_path: Path) -> None:
    for arrays in (weights(768, rows=2), weights(512)):
        with pytest.raises(HeadError, match="format univfd has \\(1, 768\\)"):
            read_linear_head(saved(tmp_path / "head.npz", arrays), UNIVFD)
    with pytest.raises(HeadError, match="class token of every block"):
        format_named("rine")
    with pytest.raises(HeadError, match="unknown format"):
        format_named("effort")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("openai/clip-vit-large-patch14", "univfd"),
        ("untrained:0:/models/clip-vit-large-patch14", "univfd"),
        ("int8:openai/clip-vit-large-patch14", "univfd"),
        ("open_clip:ViT-L-14/openai", "univfd"),
        ("timm:vit_large_patch14_clip_224.openai", "univfd"),
        ("laion/CLIP-ViT-L-14-laion2B", ""),
        ("openai/clip-vit-large-patch14-336", "clip-cues"),
        ("open_clip:ViT-L-14-336/openai", "clip-cues"),
        ("openai/clip-vit-base-patch16", ""),
        ("/models/mobilenet-v1-imagenet", ""),
        ("facebook/dinov2-large", ""),
    ],
)
def test_encoder_is_recognised_by_its_name(name: str, known: str) -> None:
    for format_name in ("univfd", "clip-cues"):
        head_format = FORMATS[format_name]
        vectors = Space(name, "c" * 64, head_format.dim, normalised=False)
        if known == format_name:
            head_format.require_space(vectors, "the vectors")
        else:
            with pytest.raises(SpaceMismatch, match="--any-encoder"):
                head_format.require_space(vectors, "the vectors")
            head_format.require_space(vectors, "the vectors", any_encoder=True)


def test_vectors_of_another_dimension_or_without_length_are_refused() -> None:
    for vectors, problem in (
        (Space(L14.encoder, L14.fingerprint, 1024, normalised=False), "1024 dimensions"),
        (Space(L14.encoder, L14.fingerprint, 768), "unit length"),
    ):
        with pytest.raises(SpaceMismatch, match=problem):
            UNIVFD.require_space(vectors, "the vectors crops", any_encoder=True)


def test_single_vector_keeps_its_length_for_the_head_and_not_for_searches(store: Store) -> None:
    snapshot = store.snapshot()
    view = concatenated_snapshot(snapshot, ("crops",))
    vectors = view.vectors()
    assert not view.space.normalised
    assert np.ptp(np.linalg.norm(vectors, axis=1)) > 1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = view.search(3 * vectors[:5], 4)
    assert np.allclose(found.similarity, -np.sort(-unit[:5] @ unit.T, axis=1)[:, :4], atol=1e-3)
    some = view.prepare_filter(np.arange(ROWS) % 2 == 0)
    assert (view.search(vectors[:5], 4, some).rows % 2 == 0).all()
    both = concatenated_snapshot(snapshot, ("main", "crops"))
    assert both.space.normalised
    assert np.allclose(np.linalg.norm(both.vectors(), axis=1), 1, atol=1e-3)


def test_imported_head_judges_like_a_trained_one(store: Store, head_file: Path) -> None:
    report = import_head(store, head_file, "univfd", "univfd")
    report.save()
    detector = VectorDetector.load(store, "univfd")
    vectors = detector.snapshot.vectors()
    logits = vectors.astype(np.float64) @ np.full(768, np.float32(0.01), np.float64) - 2
    assert np.abs(detector.head.decision_function(vectors) - logits).max() < 1e-12
    assert detector.head.threshold == 0
    assert detector.head.imported
    assert detector.head.options["file"] == "fc.pth"
    assert "UniversalFakeDetect" in detector.head.title
    truth = store.snapshot().column("labels")
    assert ((detector.decision_function(vectors) > 0) == truth).mean() > 0.9  # by the length alone
    verdicts = detector.judge(["a", "b"], vectors[[0, 1]])
    assert len(verdicts[0].neighbors["real"]) == 9
    assert report.trained.metrics["test"].auc == pytest.approx(1, abs=0.02)
    assert json.loads((head_folder(store.folder, "univfd") / "report.json").read_text())["classifier"] == "imported"


def test_imported_head_is_evaluated_on_every_pair(
    store: Store, head_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = import_head(store, head_file, "univfd", "measured")
    report.save()
    view = concatenated_snapshot(store.snapshot(), ("crops",))
    result = leave_one_out(view, report.trained.head)
    scores, sources = report.trained.head.decision_function(view.vectors()), view.column("sources")
    for cell in result.cells[::7]:
        real, fake = scores[sources == cell.real], scores[sources == cell.generator]
        assert cell.auc == pytest.approx((fake[:, None] > real).mean(), abs=1e-9)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--head", "measured", "--store", str(store.folder), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["mean_auc"] == pytest.approx(result.mean_auc, abs=1e-4)
    with pytest.raises(SpaceMismatch):
        leave_one_out(store.snapshot(), report.trained.head)


def test_vectors_that_do_not_fit_are_refused(store: Store, head_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match="--vectors"):
        import_head(store, saved(tmp_path / "w.npz", weights(5)), "linear", "x")
    with pytest.raises(SpaceMismatch, match="1024 dimensions"):
        import_head(store, head_file, "univfd", "x", vectors="pooled")
    bare = Store.create(tmp_path / "bare", space(8))
    with pytest.raises(HeadError, match="has no vectors crops or raw"):
        import_head(bare, head_file, "univfd", "x")
    with pytest.raises(NotEnoughRows):
        import_head(bare, saved(tmp_path / "w.npz", weights(8)), "linear", "x")
    assert not head_folder(store.folder, "x").exists()


def test_import_from_the_command_line(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    path = saved(tmp_path / "w.json", weights(8))
    assert run("head", "import", path, "--format", "linear", "--store", store.folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["saved"].endswith("heads/linear")
    assert report["head"]["test"]["n"] > 0
    assert run("head", "import", path, "--format", "rine", "--store", store.folder) == 1
    assert "class token of every block" in capsys.readouterr().err
    assert run("head", "import", path, "--format", "univfd", "--store", store.folder) == 1
    assert run("report", "--head", "linear", "--store", store.folder, "--out", tmp_path / "r.html") == 0


def test_imported_head_reads_the_view_that_a_query_computes(tmp_path: Path, head_file: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=768)).eval()
    folder = saved_model(tmp_path / "clip-vit-large-patch14", model, CLIP_FIELDS)
    for label in ("real", "fake"):
        for number in range(40):
            noise = np.random.default_rng([number, label == "fake"]).integers(0, 256, (9, 9, 3), np.uint8)
            path = tmp_path / "images" / label / f"cam_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).resize((48, 40)).save(path)
    store = tmp_path / "store"
    index([tmp_path / "images"], store, encoder=str(folder), options=IndexOptions(views=("crops",)))
    import_head(Store.open(store), head_file, "univfd", "univfd").save()

    session = Session(store, "univfd")
    path = tmp_path / "images" / "fake" / "cam_fake" / "3.png"
    [(image, verdict)] = session.judge([path])
    assert image.vector is not None
    pixels = np.asarray(Image.open(path))[4:36, 8:40].astype(np.float32) / 255  # the centre, not resized
    pixels = (pixels - np.array(CLIP_FIELDS["image_mean"])) / np.array(CLIP_FIELDS["image_std"])
    with torch.inference_mode():
        embedding = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()).image_embeds[0]
        logit = float((embedding * 0.01).sum() - 2)
    assert np.allclose(image.vector, embedding.numpy(), rtol=1e-4, atol=1e-5)
    assert session.detector.head.decision_function(image.vector)[0] == pytest.approx(logit, abs=1e-4)
    stored = session.detector.snapshot.vectors()
    assert np.abs(stored @ image.vector / np.linalg.norm(stored, axis=1)).max() > 0.999 * np.linalg.norm(image.vector)
    assert isinstance(verdict, Verdict)
    assert max(near.similarity for near in verdict.neighbors["fake"]) <= 1


def test_view_of_another_kind_is_refused(tmp_path: Path, head_file: Path) -> None:
    store = Store.create(tmp_path / "store", space(8))
    with store.writer() as writer:
        for block in synthetic(60, 8):
            writer.append(block)
    create_view(store.folder, "crops5", L14, ViewRecord("crops5"))
    with pytest.raises(SpaceMismatch, match="are the view crops5"):
        import_head(store, head_file, "univfd", "x", vectors="crops5")
