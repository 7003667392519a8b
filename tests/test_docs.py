"""The documents match the code: commands and options exist, links resolve, examples run."""

import doctest
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from clipfake.cli import app, spread

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `clipfake ...` and `make ...` in a code block."""
    lines_of_pages = []
    for page in PAGES:
        for block in re.findall(r"```(?:console|sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").split("#")[0].strip()
                parts = [part.strip() for part in line.split("&&")]
                lines_of_pages += [(page.name, part) for part in parts if part.split()[:1] in (["clipfake"], ["make"])]
    return lines_of_pages


def test_documents_have_commands() -> None:
    assert ("README.md", "make demo") in commands()
    assert len(commands()) > 5


def examples() -> list[tuple[str, str]]:
    """(command, line) of every example in a command's help."""
    help_examples, pending = [], [("clipfake", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        pending += [(f"{name} {sub}", subcommand) for sub, subcommand in getattr(command, "commands", {}).items()]
        lines = [line.strip() for line in (command.help or "").splitlines()]
        help_examples += [(name, line) for line in lines if line.startswith("clipfake ")]
    return sorted(help_examples)


@pytest.mark.parametrize(("page", "line"), [*commands(), *examples()], ids=lambda value: value)
def test_documented_commands_exist(page: str, line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in arguments if "=" not in word} <= set(targets)
        return
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="clipfake")  # type: ignore[arg-type]
    arguments = spread(arguments)
    while hasattr(command, "get_command"):
        name = arguments.pop(0)
        subcommand = command.get_command(context, name)
        assert subcommand is not None, f"{page}: there is no command {name}"
        command = subcommand
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)} <= options


def leaf_commands() -> dict[str, Any]:
    """All commands by name, without groups."""
    leaves, pending = {}, [("clipfake", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        below = getattr(command, "commands", {})
        pending += [(f"{name} {sub}", subcommand) for sub, subcommand in below.items()]
        if not below:
            leaves[name] = command
    return leaves


@pytest.mark.parametrize("name", sorted(leaf_commands()))
def test_every_help_has_an_example(name: str) -> None:
    """The example calls the command itself, its options parse, and it has no path of a particular machine."""
    lines = [line for shown, line in examples() if shown == name]
    assert lines
    for line in lines:
        assert line.startswith(f"{name} ")
        assert "shared" not in line
        arguments = spread(shlex.split(line)[1:])[len(name.split()) - 1 :]
        # raises for an unknown option, an invalid value or a missing argument
        leaf_commands()[name].make_context(name, arguments).close()


MODULES = sorted(
    ".".join(("clipfake", *path.relative_to(ROOT).with_suffix("").parts))
    for room in ("core", "store", "indexer", "detector", "service", "show", "simulated", "benchmarks", "commands")
    for path in (ROOT / room).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    tried = doctest.testmod(importlib.import_module(name))
    assert not tried.failed


def test_document_links_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_version_is_the_same_everywhere() -> None:
    import tomllib

    import clipfake

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == clipfake.__version__
    assert clipfake.__version__ in (ROOT / "CHANGELOG.md").read_text()
