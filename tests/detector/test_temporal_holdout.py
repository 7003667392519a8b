"""Temporal hold-out: a head sees only earlier sources; dates may be partial."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.evaluation.ridge import RidgeSums, by_source, ridge, with_constant
from clipfake.detector.evaluation.temporal_holdout import HELD_OUT, parse_date, read_dates, temporal_holdout
from clipfake.detector.metrics import auc
from clipfake.detector.training.examples import subsample
from clipfake.errors import NotEnoughRows, SourceError
from clipfake.store.records import Block, Rows, TextIndex
from clipfake.store.space import Space
from clipfake.store.store import Store

SPACE = Space("toy", "0" * 64, dim=10)
SOURCES = {"camera_a": 0, "camera_b": 0, "gan_a": 1, "gan_b": 1, "diffusion": 1, "lost": 1}
DATES = {"gan_a": date(2018, 1, 1), "gan_b": date(2019, 3, 1), "diffusion": date(2022, 8, 22)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The GANs have one direction in common, diffusion another."""
    opened = Store.create(tmp_path_factory.mktemp("replay") / "s", SPACE)
    rng = np.random.default_rng(0)
    with opened.writer() as writer:
        for source, label in SOURCES.items():
            vectors = rng.standard_normal((200, 10))
            vectors[:, 3 if source == "diffusion" else 0] += 3.0 * label
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            rows = Rows.make([f"{source}/{i}" for i in range(200)], [label] * 200, sources=[source] * 200)
            writer.append(Block(SPACE, rows, vectors))
    return opened


def test_sources_like_the_past_are_detected_and_new_ones_not(store: Store) -> None:
    report = temporal_holdout(store.snapshot(), DATES)
    assert [(w.date, w.sources, w.generators) for w in report.windows] == [
        ("2019-03-01", ("gan_b",), 1),
        ("2022-08-22", ("diffusion",), 2),
    ]
    similar, different = report.windows
    assert similar.auc > 0.9 and similar.accuracy > 0.8
    assert different.auc < 0.7 < 0.9 < different.past_auc
    assert "2022-08-22 (diffusion)" in report.sentences[0]


def test_window_equals_a_head_fitted_on_the_past(store: Store) -> None:
    snapshot = store.snapshot()
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    held = subsample(np.arange(len(snapshot)), by_source(snapshot)[0], min(HELD_OUT, len(snapshot) // 10), 0)
    trained = ~np.isin(np.arange(len(snapshot)), held)
    past = TextIndex(("camera_a", "camera_b", "gan_a")).find(sources) >= 0
    head = ridge(*(RidgeSums.from_vectors(snapshot.vectors(trained & past & (labels == label))) for label in (0, 1)))
    queries = np.concatenate([held[(labels[held] == 0)], np.flatnonzero(sources == "gan_b")])
    [window, _] = temporal_holdout(snapshot, DATES).windows
    assert window.n == len(queries)
    assert window.auc == pytest.approx(auc(labels[queries], with_constant(snapshot.vectors(queries)) @ head), abs=1e-10)


def test_sources_without_a_date_are_named(store: Store) -> None:
    report = temporal_holdout(store.snapshot(), DATES | {"nowhere": date(2020, 1, 1)})
    assert (report.undated, report.always, report.unknown) == (("lost",), ("camera_a", "camera_b"), ("nowhere",))
    assert all("lost" not in window.sources for window in report.windows)
    for name in ("lost", "camera_b", "nowhere"):
        assert any(name in sentence for sentence in report.sentences)


def test_dated_real_source_is_not_in_earlier_windows(store: Store) -> None:
    report = temporal_holdout(store.snapshot(), DATES | {"camera_b": date(2022, 8, 22)})
    assert report.windows[-1].sources == ("camera_b", "diffusion")
    assert report.windows[-1].n == 400


def test_dates_without_a_past_are_an_error(store: Store) -> None:
    with pytest.raises(NotEnoughRows, match="two generators"):
        temporal_holdout(store.snapshot(), {"gan_a": date(2018, 1, 1)})


@pytest.mark.parametrize(
    "text, day", [("2022-08-22", "2022-08-22"), (" 2022-08 ", "2022-08-01"), ("2022", "2022-01-01")]
)
def test_partial_dates_are_parsed(text: str, day: str) -> None:
    assert parse_date(text).isoformat() == day


@pytest.mark.parametrize(
    "content, message",
    [
        ("name,date\na,2020\n", "must name the columns source and date"),
        ("source,date\na,2020\nb,soon\n", "line 3"),
        ("source,date\na,2020\na,2021\n", "twice"),
        ("", "none"),
    ],
)
def test_invalid_date_table_says_where(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dates.csv"
    path.write_text(content)
    with pytest.raises(SourceError, match=message):
        read_dates(path)


def test_date_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dates.csv"
    path.write_text("\ufeffsource,date,remark\ngan_a,2018-01-01,first\ngan_b,2019-03,\n")
    assert read_dates(path) == {"gan_a": date(2018, 1, 1), "gan_b": date(2019, 3, 1)}
    with pytest.raises(SourceError, match=r"cannot read .* as CSV"):
        read_dates(tmp_path / "absent.csv")


def test_command_prints_a_table_and_draws_it(store: Store, tmp_path: Path) -> None:
    from clipfake.cli import app
    from typer.testing import CliRunner

    dates = tmp_path / "dates.csv"
    dates.write_text("source,date\n" + "".join(f"{name},{day}\n" for name, day in DATES.items()))
    output = CliRunner().invoke(
        app, ["evaluate", "--store", str(store.folder), "--temporal", str(dates), "--out", str(tmp_path / "out")]
    )
    assert output.exit_code == 0, output.output
    assert "2022-08-22" in output.stdout and "lost" in output.stdout
    assert (tmp_path / "out/temporal_holdout.csv").read_text().count("\n") == 3
    assert (tmp_path / "out/temporal_holdout.png").stat().st_size > 1000
