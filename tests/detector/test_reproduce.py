"""The figures of the paper are consistent, and its runs can be repeated on data of the same shape."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.evaluation.reproduce import (
    PAPER_DATA,
    PAPER_RUNS,
    PAPER_TABLES,
    PaperOptions,
    PaperRun,
    missing_data,
    run,
    run_inputs,
)
from clipfake.detector.metrics import Confusion
from clipfake.errors import NotEnoughRows
from clipfake.show.reproduce_tables import compared_rows, paper_tables, summary_sentences, write_tables
from clipfake.simulated.images import simulated
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store

OPTIONS = PaperOptions(epochs=2)
# Counts that give the figures of a table, found by searching all that add up to its rows.
CONFUSIONS = {
    1: Confusion(tn=5046, fp=276, fn=222, tp=5103),
    2: Confusion(tn=1424, fp=98, fn=84, tp=1437),
    3: Confusion(tn=13038, fp=962, fn=992, tp=13008),
    4: Confusion(tn=3686, fp=315, fn=337, tp=3663),
}


def test_there_are_ten_tables_and_eighteen_runs() -> None:
    assert [table.number for table in PAPER_TABLES] == list(range(1, 11))
    assert len(PAPER_RUNS) == 18
    assert {table.number for cell in PAPER_RUNS for table in cell.tables} == set(range(1, 11))


@pytest.mark.parametrize("number", CONFUSIONS)
def test_figures_of_the_paper_follow_from_its_counts(number: int) -> None:
    table, counts = PAPER_TABLES[number - 1], CONFUSIONS[number]
    [(_, figures)] = table.parts.items()
    assert figures.accuracy is not None and counts.accuracy is not None
    assert 100 * counts.accuracy == pytest.approx(figures.accuracy, abs=0.06)  # some have one decimal only
    for name in ("precision", "recall", "f1"):
        ours = getattr(counts, name)
        assert [100 * ours[which] for which in ("real", "fake")] == pytest.approx(getattr(figures, name), abs=0.011)


@pytest.mark.parametrize("table", PAPER_TABLES, ids=lambda table: f"table {table.number}")
def test_f1_follows_from_precision_and_recall(table: Any) -> None:
    for figures in table.parts.values():
        for precision, recall, f1 in zip(figures.precision, figures.recall, figures.f1, strict=True):
            assert 2 * precision * recall / (precision + recall) == pytest.approx(
                f1, abs=0.04
            )  # the F1 of means is not quite the mean of both F1


def store(folder: Path, sources: tuple[str, ...], texts: bool = True, rows: int = 80) -> Snapshot:
    """Rows of both classes and two categories in each source; the classes overlap."""
    space = Space("toy", "c" * 64, 16)
    rng = np.random.default_rng(0)
    opened = Store.create(folder, space)
    with opened.writer() as writer:
        for axis, source in enumerate(sources):
            labels = np.arange(rows) % 2
            vectors = rng.normal(size=(rows, 16)) + 0.6 * labels[:, None] * np.eye(16)[axis]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            columns = Rows.make(
                [f"{source}/{i}" for i in range(rows)],
                labels,
                sources=[source] * rows,
                generators=[source if label else "" for label in labels],
                categories=[("horse", "zebra")[i // 2 % 2] for i in range(rows)],
            )
            vectors_of = {name: rng.normal(size=16).astype(np.float32) for name in ("horse", "zebra")} if texts else {}
            writer.append(Block(space, columns, vectors.astype(np.float32), texts=vectors_of))
    return opened.snapshot()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return store(tmp_path_factory.mktemp("paper") / "s", ("cycle_gan", "pro_gan", "stylegan2"))


@pytest.mark.parametrize("kind", ["linear", "triple"])
def test_run_is_measured_on_its_own_and_other_data(snapshot: Snapshot, kind: str) -> None:
    outcome = run(snapshot, PaperRun("b16", kind, "cycle_gan"), OPTIONS)
    tested = 17 if kind == "linear" else 16  # the two pipelines of the paper round differently
    counts = {"train": 56, "validation": 24 - tested, "test": tested}
    assert outcome.rows == {"real": 40, "fake": 40, **counts}
    assert {part: value["n"] for part, value in outcome.parts.items()} == counts
    assert outcome.elsewhere.keys() == {"pro_gan"}
    assert outcome.elsewhere["pro_gan"]["n"] == tested
    assert outcome.modes.keys() == (set() if kind == "linear" else {"given", "zero-shot", "mean"})
    assert set(outcome.baselines) == set(OPTIONS.baselines)
    saved = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    # these inputs identify a finished run
    assert saved["asked"] == json.loads(json.dumps(run_inputs(snapshot, OPTIONS)))
    if kind == "triple":
        assert outcome.modes["given"] == outcome.parts["test"]
        combined = run(snapshot, PaperRun("b16", kind, "combined"), OPTIONS)
        assert (combined.rows["real"], combined.elsewhere) == (80, {})


def test_impossible_run_says_why(tmp_path: Path) -> None:
    only = store(tmp_path / "s", ("cycle_gan",), texts=False)
    assert missing_data(only, PaperRun("b32", "linear", "cycle_gan")) == ""
    assert "no rows of pro_gan" in missing_data(only, PaperRun("b32", "linear", "combined"))
    assert "no text side" in missing_data(only, PaperRun("b16", "sum", "cycle_gan"))
    with pytest.raises(NotEnoughRows, match="no rows of pro_gan"):
        run(only, PaperRun("b32", "linear", "pro_gan"))


def test_tables_compare_the_paper_with_our_figures(snapshot: Snapshot, tmp_path: Path) -> None:
    from rich.console import Console

    cells = [PaperRun("b32", "linear", "cycle_gan"), PaperRun("b16", "triple", "combined")]
    runs = {cell.name: json.loads(json.dumps(run(snapshot, cell, OPTIONS).to_dict())) for cell in cells}
    result = {"runs": runs, "missing": {"b16-sum-combined": "no encoder"}, "notices": ["not CLIP"]}
    rows = compared_rows(result)
    assert {row[0] for row in rows} == {"1", "2", "10"}
    [test] = [row for row in rows if row[:4] == ["2", "B/32 image, CycleGAN", "test", "accuracy"]]
    assert (test[4], test[7]) == ("94.00", "80 (15,210)")
    assert test[5] == f"{100 * runs['b32-linear-cycle_gan']['parts']['test']['accuracy']:.2f}"
    assert "Not run: b16-sum-combined: no encoder" in summary_sentences(result)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(paper_tables(result))
    shown = console.export_text()
    assert "not CLIP" in shown
    assert "…" not in shown
    markdown, table = write_tables(result, tmp_path)
    assert "| 10 | B/16 triple, combined | test | recall macro | 90.57 |" in markdown.read_text()
    assert len(table.read_text().splitlines()) == len(rows) + 1


@pytest.mark.slow
def test_command_resumes_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipfake.cli import main

    folder = tmp_path / "cycle_gan"
    (folder / "images").mkdir(parents=True)
    lines = ["filename,image_path,target,category"]
    for i in range(60):
        (folder / f"images/{i}.jpg").write_bytes(simulated(3 if i % 2 else i % 3, i, seed=4))
        lines.append(f"{i}.jpg,images/{i}.jpg,{3 * (i % 2)},{('horse', 'zebra')[i // 2 % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    encoder = build_standin(tmp_path)
    arguments = ["reproduce", "--folders", str(folder), "--out", str(tmp_path / "out"), "--epochs", "2", "--json"]
    arguments += ["--b32", str(encoder), "--b16", str(encoder)]

    def run_command() -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    output = run_command()
    done = {cell.name for cell in PAPER_RUNS if cell.data == "cycle_gan"}
    assert output["runs"].keys() == done
    assert output["missing"].keys() == {cell.name for cell in PAPER_RUNS} - done
    assert "stand-in" in output["notices"][0]
    (tmp_path / "out/runs/b16-sum-cycle_gan.json").unlink()
    repeated: list[str] = []
    monkeypatch.setattr(
        "clipfake.detector.evaluation.reproduce.run",
        lambda snapshot, cell, *rest: repeated.append(cell.name) or run(snapshot, cell, *rest),  # type: ignore[func-returns-value]
    )
    again = run_command()
    assert repeated == ["b16-sum-cycle_gan"]
    assert again["runs"]["b16-sum-cycle_gan"]["parts"] == output["runs"]["b16-sum-cycle_gan"]["parts"]
    assert PAPER_DATA["cycle_gan"].name in (tmp_path / "out/tables.md").read_text()
