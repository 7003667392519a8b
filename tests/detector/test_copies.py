"""Copies of a stored picture are confirmed by thumbnails, edits of it are not, and the answer is the copies' label."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.copies.alignment import same_picture
from clipfake.detector.copies.finder import find_copies
from clipfake.detector.copies.picture import Picture
from clipfake.detector.detector import VectorDetector
from clipfake.detector.evidence import Bank
from clipfake.detector.training.calibrate import calibrate
from clipfake.detector.training.train import TrainOptions, train
from clipfake.detector.training.triplet import TripletOptions
from clipfake.detector.verdict import StoredCopy, Verdict, VerdictChange, describe_copies, require_stable, settle
from clipfake.indexer.decoding.image import thumbnail
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from PIL import Image, ImageFilter

SPACE = Space("toy", "0" * 64, dim=8)
LABELS = [0, 1] * 160
COPIED = 40  # a real row
REASONS = ("fake is ruled out at an error rate of 5%",)


def photo(seed: int, side: int = 240) -> Image.Image:
    """Smooth coloured shapes with some texture."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.SMOOTH)


def saved(image: Image.Image, quality: int = 40) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def thumbnail_of(image: Image.Image) -> bytes:
    return thumbnail(np.asarray(image))


def compare(stored: Image.Image, queried: Image.Image) -> bool | None:
    """True for a copy, and None for a mirrored one."""
    pictures = [Picture.of(thumbnail_of(image)) for image in (stored, queried)]
    assert pictures[0] and pictures[1]
    same = same_picture(pictures[0], pictures[1])
    return (None if same.mirrored else True) if same else False


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": saved,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "crop": lambda image: image.crop((20, 4, 20 + image.width * 9 // 10, 4 + image.height * 9 // 10)),
    "narrow": lambda image: image.crop((0, 0, image.width * 9 // 10, image.height)),
    "squashed": lambda image: image.resize((image.width, image.height * 3 // 4)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_confirmed_both_ways(view: str, mirrored: bool) -> None:
    for seed in range(5):
        image = photo(seed)
        copy = saved(VIEWS[view](image), 60)
        copy = copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else copy
        expected = None if mirrored else True
        assert compare(image, copy) is expected
        assert compare(copy, image) is expected


@pytest.mark.parametrize("share", [0.15, 0.25, 0.5])
def test_local_edits_are_not_copies(share: float) -> None:
    for seed in range(5):
        image, other = photo(seed), photo(seed + 100)
        side, edited = round(image.width * share), image.copy()
        edited.paste(other.crop((30, 30, 30 + side, 30 + side)), (90, 70))
        assert compare(image, saved(edited, 90)) is False


def test_different_and_plain_pictures_are_not_copies() -> None:
    assert compare(photo(1), photo(2)) is False
    grey = np.random.default_rng(0).integers(100, 110, (2, 64, 64, 3), np.uint8)
    assert compare(Image.fromarray(grey[0]), Image.fromarray(grey[1])) is False
    black = Image.new("RGB", (64, 64))
    assert compare(black, black) is False  # nothing to recognize it by


def sky(seed: int, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    """A gradient from top to bottom with the noise of a camera."""
    share = np.linspace(0, 1, 300)[:, None, None] ** 1.1
    noise = np.random.default_rng(seed).normal(0, 2, (300, 400, 3))
    return Image.fromarray(np.clip(np.array(top) * (1 - share) + np.array(bottom) * share + noise, 0, 255).astype("u1"))


def test_clear_skies_and_walls_are_not_copies_of_each_other() -> None:
    blue, hazy = sky(1, (60, 120, 200), (170, 200, 235)), sky(2, (90, 110, 160), (200, 205, 215))
    green = sky(3, (20, 70, 20), (140, 190, 110))
    for queried in (hazy, green, blue.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        assert compare(blue, queried) is False
    with_clouds = Image.blend(blue, photo(4).resize(blue.size), 0.3)
    assert compare(with_clouds, saved(with_clouds)) is True


@pytest.mark.parametrize("ground", ["white", "black"])
@pytest.mark.parametrize("share", [0.08, 0.12, 0.15])
def test_small_pictures_on_a_plain_ground_are_not_copies_of_each_other(ground: str, share: float) -> None:
    side = round(400 * share)
    for seed in range(5):
        canvases = [Image.new("RGB", (400, 400), ground) for _ in range(2)]
        for canvas, shown in zip(canvases, (photo(seed), photo(seed + 50)), strict=True):
            canvas.paste(shown.resize((side, side)), (200 - side // 2, 200 - side // 2))
        assert compare(*canvases) is False


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 no image", b"P6\n9999 9999\n255\n"])
def test_unusable_thumbnails_confirm_nothing(content: bytes) -> None:
    assert Picture.of(content) is None


def test_huge_thumbnails_are_not_decoded() -> None:
    content = io.BytesIO()
    Image.new("RGB", (2000, 8)).save(content, "JPEG")
    assert Picture.of(content.getvalue()) is None


def unit(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [thumbnail_of(photo(seed)) for seed in range(len(LABELS))]


def detector_of(folder: Path, thumbnails: tuple[bytes, ...], labels: list[int], vectors: np.ndarray) -> VectorDetector:
    store, n = Store.create(folder, SPACE), len(labels)
    sources = [f"{'gan' if label else 'camera'}_{i % 2}" for i, label in enumerate(labels)]
    rows = Rows.make(
        keys=[f"{source}/{i}" for i, source in enumerate(sources)],
        labels=labels,
        sources=sources,
        generators=[source if label else "" for source, label in zip(sources, labels, strict=True)],
        paths=["/nonexistent"] * n,
        digests=np.frombuffer(np.random.default_rng(7).bytes(16 * n), "V16"),
    )
    with store.writer() as writer:
        writer.append(Block(SPACE, rows, vectors, thumbnails))
    options = TrainOptions(triplet=TripletOptions(epochs=1), baselines=())
    head = train(store.snapshot(), options).head
    calibration = calibrate(store.snapshot(), head, options).calibration
    return VectorDetector(head, Bank.from_snapshot(store.snapshot()), calibration)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> VectorDetector:
    vectors = unit(len(LABELS), 0)
    vectors[:, 0] += np.array(LABELS) * 2
    vectors[COPIED] = vectors[1]  # looks like a fake to the signals
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return detector_of(tmp_path_factory.mktemp("copies") / "s", tuple(pictures), LABELS, vectors)


def judged(detector: VectorDetector, thumbnail: bytes, digest: bytes = bytes(16)) -> Verdict:
    vector = detector.snapshot.vectors([COPIED])
    [verdict] = detector.judge(["x"], vector, np.frombuffer(digest, "V16"), thumbnails=[thumbnail])
    return verdict


def test_copy_of_a_real_image_is_real_whatever_the_signals_say(detector: VectorDetector) -> None:
    verdict = judged(detector, thumbnail_of(saved(photo(COPIED))))
    key = detector.snapshot.column("keys")[COPIED]
    assert verdict.copy == f"A copy of a known real image, {key}"
    assert (verdict.verdict, verdict.known, verdict.settled) == ("real", key, True)
    assert verdict.reasons[0].startswith(f"it is a copy of the known real image {key}, compared at 64 x 64 pixels")
    assert [(row.match, row.mirrored) for row in verdict.stored] == [("picture", False)]
    assert key not in {n.key for of_class in verdict.neighbors.values() for n in of_class}
    assert (verdict.changes, verdict.generator) == ((), "")
    assert list(verdict.to_dict())[:2] == ["image", "copy"]


def test_confirmed_copies_are_not_evidence(detector: VectorDetector, tmp_path: Path) -> None:
    """The score is the one of a bank that never had the copy."""
    verdict = judged(detector, thumbnail_of(saved(photo(COPIED))))
    others = np.arange(len(detector.snapshot)) != COPIED
    without = replace(detector, bank=detector.bank.where(others))
    expected = judged(without, b"")
    assert verdict.score == pytest.approx(expected.score, abs=1e-6)
    assert verdict.signals == pytest.approx(expected.signals)


def test_same_bytes_settle_without_a_thumbnail(detector: VectorDetector) -> None:
    verdict = judged(detector, b"", detector.snapshot.column("digests")[COPIED].tobytes())
    assert (verdict.verdict, verdict.stored[0].match) == ("real", "file")
    assert verdict.reasons[0].endswith(", the same file")


def test_vector_alone_changes_nothing(detector: VectorDetector) -> None:
    verdict = judged(detector, b"")
    assert not verdict.settled
    assert verdict.known == ""
    assert verdict.copy.startswith("Perhaps a copy of a known")
    assert verdict.copy.endswith("(unconfirmed: no thumbnail to compare with)")
    assert verdict.stored[0].key in {n.key for of_class in verdict.neighbors.values() for n in of_class}
    assert not judged(detector, thumbnail_of(photo(999))).stored  # a thumbnail that differs


def test_stored_paths_are_not_opened(detector: VectorDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a path was opened"))
    assert judged(detector, thumbnail_of(photo(COPIED))).settled


def test_search_stops_after_three_pictures_that_differ(detector: VectorDetector) -> None:
    read: list[int] = []
    snapshot = detector.snapshot
    candidates = detector.bank.candidates(unit(1, 5))

    class Counting:
        def thumbnail(self, row: int) -> bytes:
            read.append(row)
            return snapshot.thumbnail(row)

    counting: object = Counting()
    small = thumbnail_of(photo(999))
    assert find_copies(counting, list(candidates.values()), small, lambda _: True) == []  # type: ignore[arg-type]
    assert len(read) == 6


def copy_of(key: str, label: str, **fields: object) -> StoredCopy:
    return StoredCopy(key, label, "s", "", **fields)  # type: ignore[arg-type]


def test_copies_settle_the_answer() -> None:
    real, fake, vector = copy_of("r", "real"), copy_of("f", "fake"), copy_of("v", "fake", match="vector")
    assert settle([real], "real", REASONS) == (
        "real",
        ("it is a copy of the known real image r, the same file", *REASONS),
    )
    assert settle([fake, vector], "real", REASONS) == (
        "fake",
        (
            "it is a copy of the known fake image f, the same file",
            f"the signals alone would have answered real: {REASONS[0]}",
        ),
    )
    answer, reasons = settle([real, fake], "real", REASONS)
    assert answer == "unsure"
    assert reasons[0] == "its copies are known as real (r) and as fake (f), the same file"
    for undecided in ([], [vector], [copy_of("u", "unknown")]):
        assert settle(undecided, "real", REASONS) == ("real", REASONS)


def test_sentence_says_what_is_copied() -> None:
    mirrored = copy_of("r", "real", match="picture", mirrored=True)
    assert describe_copies([mirrored]) == "A mirrored copy of a known real image, r"
    assert describe_copies([copy_of("u", "unknown")]) == "A copy of a stored image of unknown origin, u"
    assert describe_copies([]) == ""


def test_degraded_views_do_not_unsettle_a_copy(detector: VectorDetector) -> None:
    from clipfake.detector.detector import QueryOptions

    verdict = judged(detector, thumbnail_of(photo(COPIED)))
    views = {"blurred": detector.snapshot.vectors([3])[0]}
    assert detector.check_stability(verdict, views, b"", QueryOptions()) == verdict
    changed = require_stable(replace(verdict, verdict="fake"), (VerdictChange("blurred", "real", 0.0),))
    assert changed.verdict == "unsure"  # only `check_stability` knows of copies
