"""Structure check: counts over a source tree that grow as its structure decays. The code is parsed, not run.

    python -m clipfake.benchmarks.house
    python -m clipfake.benchmarks.house ../another-checkout --names

Prints a table and one JSON object; `--names` lists the names that are counted. Tests count for `identifiers` only.

modules        number of modules by package, without those of its subpackages
import_floors  length of the longest chain of imports inside a top-level package, without imports for type checking
shared_names   class names that are used by more than one class
parameters     functions with more than 6 parameters, without `self` and `cls`
long           functions of more than 60 lines
lines          lines of code, without blank lines, comments and docstrings
identifiers    uses of vague names: told, said, asked, tell
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .common import command

MAX_PARAMETERS = 6
MAX_LINES = 60
VAGUE = ("told", "said", "asked", "tell")
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def run(folder: Path, *, names: bool = False) -> dict[str, Any]:
    """The counts of a source tree whose root is the folder of a package.

    Parameters
    ----------
    names : add the names that are counted, by kind
    """
    sources = {_module_name(path, folder): path.read_text(encoding="utf-8") for path in _source_files(folder)}
    tests = [path.read_text(encoding="utf-8") for path in sorted((folder / "tests").rglob("*.py"))]
    trees = {name: ast.parse(source) for name, source in sources.items()}
    shared = shared_class_names(trees)
    functions = {f"{module}.{name}": node for module, tree in trees.items() for name, node in _functions(tree)}
    many = [name for name, node in functions.items() if parameter_count(node) > MAX_PARAMETERS]
    long = [name for name, node in functions.items() if _line_count(node) > MAX_LINES]
    identifiers = Counter(name for source in [*sources.values(), *tests] for name in vague_identifiers(source))
    result: dict[str, Any] = {
        "modules": dict(sorted(Counter(_package(name) for name in sources).items())),
        "import_floors": import_floors(trees),
        "shared_names": len(shared),
        "classes_with_shared_names": sum(map(len, shared.values())),
        "parameters": len(many),
        "long": len(long),
        "lines": sum(code_lines(sources[name], tree) for name, tree in trees.items()),
        "identifiers": {name: identifiers[name] for name in VAGUE},
    }
    if names:
        result["names"] = {"shared_names": shared, "parameters": many, "long": long}
    return result


def _source_files(folder: Path) -> Iterator[Path]:
    """Python files of the package, without tests and folders that are not packages."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder).parts
        if inside[0] != "tests" and all(
            (folder.joinpath(*inside[:i]) / "__init__.py").exists() for i in range(len(inside))
        ):
            yield path


def _module_name(path: Path, folder: Path) -> str:
    """Dotted name relative to the root package; a package ends in `.__init__`."""
    return ".".join(path.relative_to(folder).with_suffix("").parts)


def _package(module: str) -> str:
    return module.rpartition(".")[0] or "(root)"


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """All functions with their qualified names, including methods and nested functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
        named = isinstance(node, Function | ast.ClassDef)
        yield from _functions(node, f"{prefix}{node.name}." if named else prefix)  # type: ignore[attr-defined]


def parameter_count(function: Function) -> int:
    """Number of named parameters, without `self` and `cls`.

    >>> parameter_count(ast.parse("def f(self, a, /, b, *rest, c, **more): ...").body[0])
    3
    """
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _line_count(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def shared_class_names(trees: Mapping[str, ast.AST]) -> dict[str, list[str]]:
    """Modules of each class name that is used by more than one class."""
    modules: dict[str, list[str]] = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(module)
    return {name: modules_of_name for name, modules_of_name in sorted(modules.items()) if len(modules_of_name) > 1}


def import_floors(trees: Mapping[str, ast.AST]) -> dict[str, int]:
    """Length of the longest chain of imports between the modules of each top-level package."""
    imports = {module: set(_imports(module, tree, trees)) for module, tree in trees.items()}
    floors: dict[str, int] = {}

    def depth(module: str, above: frozenset[str]) -> int:
        if module not in floors:
            top = module.split(".")[0]
            below = [target for target in imports[module] if target.split(".")[0] == top and target not in above]
            floors[module] = 1 + max((depth(target, above | {module}) for target in below), default=0)
        return floors[module]

    packages: dict[str, int] = {}
    for module in trees:
        package = module.split(".")[0] if "." in module else "(root)"
        if package != "(root)":
            packages[package] = max(packages.get(package, 0), depth(module, frozenset({module})))
    return dict(sorted(packages.items()))


def _imports(module: str, tree: ast.AST, modules: Iterable[str]) -> Iterator[str]:
    """The modules of the tree that a module imports relatively, except under TYPE_CHECKING."""
    names = set(modules)
    for node in _without_type_checking(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*module.split(".")[: -node.level], *(node.module or "").split(".")]
        for alias in node.names:
            path = ".".join(filter(None, [*base, alias.name]))
            parent = ".".join(filter(None, base))
            target = next((name for name in (path, parent, f"{parent}.__init__") if name in names), "")
            if target and target != module:
                yield target


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _without_type_checking(node)


def code_lines(source: str, tree: ast.AST) -> int:
    """Number of lines that hold code.

    >>> source = '"A docstring."\\n\\n# a comment\\nx = (\\n    1\\n)\\n'
    >>> code_lines(source, ast.parse(source))
    3
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def vague_identifiers(source: str) -> list[str]:
    """Uses of the names in VAGUE, as identifiers only.

    >>> vague_identifiers("told = 'told'  # told")
    ['told']
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.NAME and token.string in VAGUE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent.parent
    parser.add_argument("folder", nargs="?", type=Path, default=root, help="root of a checkout (default: this one)")
    parser.add_argument("--names", action="store_true", help="list the names that are counted")
    options = parser.parse_args()
    command.print_result(run(options.folder, names=options.names))


if __name__ == "__main__":
    main()
