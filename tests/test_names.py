"""Names that strangers chose: shown escaped by every command, with their true text in the store and in JSON."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.cli import main
from clipfake.commands.terminal import EscapingStream, print_message, print_result
from clipfake.core.escaping import UNSEEN, csv_text, escape, escape_all, escape_json
from clipfake.show.tables import EscapingConsole, table
from clipfake.store.store import Store
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

# clears the screen, sets the title, forges a line, starts a C1 sequence, reverses the text; with markup and a formula
HOSTILE = "=[red]\x1b[2J\x1b]0;t\x07\nREAL 99%\r\t\x7f\x9b31m\u202egpj\u200b\u2028[link=x]$\\frac$"
KINDS = {"real": ("cam", f"cam{HOSTILE}"), "fake": ("gan", f"gan{HOSTILE}")}
Run = Callable[..., str]


def unseen(text: str) -> list[str]:
    """The characters that have an effect but are not seen, line feeds excepted."""
    return [character for character in text if unicodedata.category(character) in UNSEEN and character != "\n"]


def assert_harmless(text: str) -> None:
    assert unseen(text) == []
    assert not [line for line in text.split("\n") if line.startswith("REAL 99%")]


def draw(path: Path, number: int, shade: int) -> None:
    noise = np.random.default_rng(number).integers(0, 90, (8, 8, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + shade).astype(np.uint8)).resize((32, 32)).save(path, "PNG")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose names, folders and categories are hostile, with an unreadable one and two copies."""
    folder = tmp_path_factory.mktemp("tree") / f"data{HOSTILE}"
    for label, sources in KINDS.items():
        for source in sources:
            for number in range(60):
                draw(
                    folder / label / source / f"{number}{HOSTILE}.png",
                    2 * number + (label == "fake"),
                    150 * (label == "fake"),
                )
    (folder / "real" / "cam" / f"broken{HOSTILE}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made\x1b[2J") / "store"
    for command in (["index", tree, "--encoder", "plain"], ["train", "--epochs", 2], ["store", "index"]):
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()):
            main([str(part) for part in (*command, "--store", folder)])
        assert not ended.value.code
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def ran(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        return "\n".join(capsys.readouterr())

    return ran


COMMANDS = (
    "index TREE --dry-run",
    "index TREE --dry-run --stats",
    "index TREE --store NEW --encoder plain",
    "index TREE --store STORE --encoder plain --retry-quarantined",
    "train --from-store --epochs 1 --head h --store STORE",
    "query TREE/real/cam --store STORE",
    "query TREE/real/cam --store STORE --csv",
    "query TREE/real/cam --store STORE --check-stability --sheet OUT/sheet.png",
    "query TREE/no --store STORE",
    "evaluate --store STORE --out OUT",
    "report --store STORE --out OUT/report.html",
    "store info --store STORE",
    "store snapshots --store STORE",
    "store verify --store STORE",
    "store repair --store STORE",
    "store duplicates --threshold 0.5 --store STORE",
    "store export --to OUT/export --layout parquet --store STORE",
    "store add-vectors again --encoder plain --store STORE",
    "store compact --store STORE",
    "bank add TREE/real/cam --source NAME --label real --store STORE",
    "bank remove NAME --store STORE",
    "bank remove NAME --store STORE",  # it is gone
    # refusals and usage errors
    "query TREE --store NAME",
    "query TREE --store STORE --sheet NAME.gif",
    "query --NAME",
    "NAME",
    "index TREE --limit NAME",
    "index NAME --dry-run",
    "index TREE --dry-run --columns NAME",
    "index TREE --decoder NAME",
    "store duplicates --label NAME --store STORE",
    "store duplicates --source NAME --store STORE",
    "evaluate --temporal NAME --store STORE",
    "fuse NAME --label NAME",
    "store import NAME --store STORE",
    "train --store STORE --vectors NAME",
    "report --store STORE --head NAME",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_names_escaped(command: str, tree: Path, store: Path, tmp_path: Path, run: Run) -> None:
    places = {
        "TREE": str(tree),
        "STORE": str(store),
        "NEW": str(tmp_path / "new"),
        "OUT": str(tmp_path),
        "NAME": HOSTILE,
    }
    words = [re.sub("|".join(places), lambda match: places[match[0]], word) for word in command.split(" ")]
    shown = run(*words)
    assert shown.strip()
    assert_harmless(shown)
    assert "Traceback" not in shown
    if any(place in command for place in ("TREE", "NAME")) and "export" not in command:
        assert r"\x1b[2J" in shown or "99%" not in shown


def test_columns_of_a_fusion_are_shown_escaped(tmp_path: Path, run: Run) -> None:
    columns = [f"{letter}{HOSTILE}" for letter in "abc"]
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "truth"])
        table.writerows([[i % 7, i % 2 + i / 90, i, i % 2] for i in range(60)])
    for label, expected in (("truth", "AUC"), ("x", "no column")):
        shown = run("fuse", tmp_path / "scores.csv", "--label", label)
        assert expected in shown
        assert_harmless(shown)


def test_written_pages_and_tables_show_names_escaped(store: Path, tmp_path: Path, run: Run) -> None:
    run("evaluate", "--store", store, "--out", tmp_path / "figures")
    run("report", "--store", store, "--out", tmp_path / "report.html")
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".csv", ".svg")]
    assert len(texts) > 10
    for path in texts:
        content = path.read_text(encoding="utf-8")
        assert_harmless(content)
        if path.suffix == ".csv":
            assert not [cell for row in csv.reader(io.StringIO(content)) for cell in row if cell.startswith("=")]
    assert r"[red]\x1b[2J" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_json_has_the_true_names_in_escapes(tree: Path, store: Path, run: Run) -> None:
    for arguments in (["query", tree / "real" / "cam", "--store", store], ["store", "info", "--store", store]):
        shown = run(*arguments, "--json").strip()
        assert_harmless(shown)
        # the notice on the error rate, in lines of its own, is on standard error, which `run` returns too
        answers = [json.loads(line) for line in shown.split("\n") if line.startswith("{")]
        assert answers
        assert HOSTILE in json.dumps(answers, ensure_ascii=False).replace(
            json.dumps(HOSTILE, ensure_ascii=False)[1:-1], HOSTILE
        )
    keys = Store.open(store).snapshot().column("keys").tolist()
    assert any(key.endswith(f"3{HOSTILE}.png") for key in keys)


def test_contact_sheet_shows_a_name_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tree: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    from PIL import ImageDraw

    drawn: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, *rest: Any, **options: Any) -> None:
        drawn.append(text)
        draw_text(self, xy, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    run("query", tree / "real" / "cam" / f"3{HOSTILE}.png", "--store", store, "--sheet", tmp_path / "sheet.png")
    assert any(line.startswith(r"3=[red]\x1b[2J") for line in drawn)
    assert unseen("".join(drawn)) == [] and "\n" not in "".join(drawn)


def test_on_a_terminal_only_styles_are_sent(tree: Path, store: Path) -> None:
    ours = {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm-256color", "COLUMNS": "100"}
    for command in (
        ["query", tree / "real" / "cam", "--store", store],
        ["query", f"--{HOSTILE}"],
        ["store", "info", "--store", store],
    ):
        shown = on_terminal([sys.executable, "-m", "clipfake", *map(str, command)], {**os.environ, **ours})
        styles = re.compile(r"\x1b\[[0-9;]*m|\r\x1b\[2K|\r(?=\n)|\x1b\[\?25[lh]")
        assert re.search(r"\x1b\[[0-9;]+m", shown), "no colours"
        assert unseen(styles.sub("", shown)) == []


def on_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while part := os.read(ours, 65536):
            parts.append(part)
    process.wait()
    os.close(ours)
    return b"".join(parts).decode()


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_escaped_text_is_seen_and_otherwise_the_same(text: str) -> None:
    shown = escape(text)
    assert unseen(shown) == [] and "\n" not in shown
    assert escape(shown) == shown
    kept = "".join(character for character in text if unicodedata.category(character) not in UNSEEN)
    assert kept in shown if len(kept) == len(text) else len(shown) > len(text)
    sent = json.dumps({text: [text]}, ensure_ascii=False)
    assert unseen(escape_json(sent)) == []
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # JSON joins surrogates
    assert json.loads(escape_json(sent)) == {whole: [whole]}


def test_names_in_any_script_stay_as_they_are() -> None:
    for name in (
        "münchen 1.jpg",
        "写真＝１.png",
        "фото (2).jpg",
        "صورة.jpg",
        "Screenshot 1.02 PM.png",
        "a\u3000b",
        "👩.png",
    ):
        assert escape(name) == name


@pytest.mark.parametrize("start", [*"=+-@", "＝", "＋", "－", "＠"])
def test_csv_cell_is_no_formula(start: str) -> None:
    [[cell, number, inner]] = csv.reader(io.StringIO(csv_text([[f"{start}1+1\n", -0.5, f"a{start}1"]])))
    assert cell == f"'{start}1+1\\n"
    assert (number, inner) == ("-0.5", f"a{start}1")


def test_report_is_escaped_at_any_depth() -> None:
    report = {"a\x1b": [("b\n", 1), {"c": None}], "d": 0.5}
    assert escape_all(report) == {r"a\x1b": [(r"b\n", 1), {"c": None}], "d": 0.5}


def test_console_escapes_what_a_table_forgot(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(table("t\x1b[2J", ["a\x9b", "[red]b"], [["c\u202e", "[link=x]d"]]))
    shown = capsys.readouterr().out
    assert unseen(shown) == []
    for text in (r"t\x1b[2J", r"a\x9b", "[red]b", r"c\u202e", "[link=x]d"):
        assert text in shown


def test_streams_escape_what_libraries_write() -> None:
    stream = io.StringIO()
    with contextlib.redirect_stderr(EscapingStream(stream)):
        try:
            raise ValueError("bad tag \x1b[2J\u202e")
        except ValueError:
            traceback.print_exc()
        print("one\ttwo\x9b", file=sys.stderr)
        print_message("first", f"second{HOSTILE}")
        EscapingConsole(stderr=True, force_terminal=True).print("plain\x1b[2J", style="red")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert unseen(shown) == ["\t"]
    assert r"ValueError: bad tag \x1b[2J\u202e" in shown
    assert r"second=[red]\x1b[2J" in shown and r"plain\x1b[2J" in shown


def test_progress_bars_of_libraries_still_move() -> None:
    stream = io.StringIO()
    bar = EscapingStream(stream)
    for text in ("\r 10%", "\n", "\x1b[A", "\r 20% a\x1b[2J\r"):
        bar.write(text)
    assert stream.getvalue() == "\r 10%\n\x1b[A\r 20% a\\x1b[2J\\r"
