"""Help texts: complete at 80 columns, in sentences that stand alone; earlier spellings still work."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from clipfake.cli import app
from clipfake.commands.aliases import OPTIONS, current_spelling
from typer.testing import CliRunner

FRAGMENTS = ("Of ", "That ", "Or ", "To ", "Whether ")


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, *path, name)


COMMANDS = list(commands(typer.main.get_command(app)))
IDS = [" ".join(path) or "clipfake" for path, _ in COMMANDS]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_help_is_in_sentences(path: tuple[str, ...], command: Any) -> None:
    texts = {param.name: getattr(param, "help", "") for param in command.params if param.name != "help"}
    texts["the command"] = (command.help or "").split("\n")[0]
    for name, text in texts.items():
        assert text, f"{name} has no help"
        assert not text.startswith(FRAGMENTS), f"{name}: {text}"
        assert text[0].isupper() and text.rstrip().endswith("."), f"{name}: {text}"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_help_is_whole_at_80_columns(path: tuple[str, ...], command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, [*path, "--help"])
    printed = result.output
    assert result.exit_code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    for param in command.params:
        for option in param.opts:
            if option.startswith("--"):
                assert re.search(rf"(?<!\S){re.escape(option)}(?![\w-])", printed), option


@pytest.mark.parametrize(
    ("earlier", "current"),
    [
        (["index", "--shard", "1/2", "a"], ["index", "--part", "1/2", "a"]),
        (["index", "--shard=1/2"], ["index", "--part=1/2"]),
        (["train", "--columns", "main,depth"], ["train", "--vectors", "main,depth"]),
        (["store", "column", "depth"], ["store", "add-vectors", "depth"]),
        (["store", "index", "--kind", "compact"], ["store", "index", "--kind", "quantized"]),
        (["store", "index", "--kind=compact"], ["store", "index", "--kind=quantized"]),
        (["store", "push", "--quantised", "int8"], ["store", "push", "--quantized", "int8"]),
        (["index", "--thumbnails", "a"], ["index", "a"]),
        (["query", "--steady", "a.jpg"], ["query", "--check-stability", "a.jpg"]),
    ],
)
def test_earlier_spelling_works(earlier: list[str], current: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert current_spelling(earlier) == current
    assert re.search(" is (now|the default) ", capsys.readouterr().err)
    assert current_spelling(current) == current
    assert capsys.readouterr().err == ""


def test_help_has_current_spellings_only() -> None:
    options = {" ".join(path): {opt for param in command.params for opt in param.opts} for path, command in COMMANDS}
    for command, renamed in OPTIONS.items():
        assert options[command].isdisjoint(renamed)
        assert set(renamed.values()) - {""} <= options[command]
