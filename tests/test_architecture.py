"""The structure of the source tree: permitted imports, and names."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from clipfake.store.records import COLUMNS, TEXT
from conftest import ORDERING

ROOT = Path(__file__).parent.parent
# The packages that each package, and each module at the root, may import. Any other import is an error.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "store": {"core", "errors"},
    "indexer": {"store", "core", "errors"},
    "detector": {"store", "core", "errors"},
    "simulated": {"core", "errors"},
    "session": {"simulated", "indexer", "detector", "store", "core", "errors"},
    "api": {"session", "indexer", "detector", "store", "core", "errors"},
    "show": {"detector", "store", "core", "errors"},
    "service": {"show", "detector", "store", "core", "errors"},
    "benchmarks": {"service", "show", "simulated", "detector", "indexer", "store", "core", "errors"},
    "commands": {
        "benchmarks",
        "service",
        "show",
        "session",
        "simulated",
        "detector",
        "indexer",
        "store",
        "core",
        "errors",
    },
}
FILES = [
    path for name in BELOW for path in [*sorted((ROOT / name).rglob("*.py")), ROOT / f"{name}.py"] if path.is_file()
]
PACKAGES = sorted(path.parent for path in FILES if path.name == "__init__.py")
CODES = {"bank.sources", "candidates.sources"}  # numbers, although they have the name of a column of texts
HEAVY = ("torch", "transformers", "faiss", "sklearn", "pandas", "matplotlib", "fastapi", "h5py")


def imported_packages(path: Path) -> Iterator[str]:
    """The packages that a file imports from, at module level or inside functions."""
    depth = len(path.relative_to(ROOT).parts)  # store/records.py: 2
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = path.relative_to(ROOT).parts[: depth - node.level]
            full = [*inside, *(node.module or "").split(".")]
            yield from [name.name for name in node.names] if full == [""] else [full[0]]
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    package = path.relative_to(ROOT).with_suffix("").parts[0]
    imported = {name for name in imported_packages(path) if name in {*BELOW, "cli", "clipfake"}} - {package}
    assert imported <= BELOW[package], f"{package} may import from {sorted(BELOW[package])}; pass a function instead"


def imported_files(path: Path) -> set[Path]:
    """The modules of clipfake that a file imports, inside functions and for type checking too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    candidates = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            candidates |= {base.with_suffix(".py"), *((base / f"{name.name}.py") for name in node.names)}
    return {file for file in candidates if file.is_file()} - {path}


def test_imports_have_no_cycles() -> None:
    imports = {path: imported_files(path) for path in FILES}
    cycles, done = [], set()

    def walk(path: Path, trail: tuple[Path, ...]) -> None:
        if path in trail:
            cycles.append([str(module.relative_to(ROOT)) for module in trail[trail.index(path) :]])
        elif path not in done:
            for imported in sorted(imports.get(path, ())):
                walk(imported, (*trail, path))
            done.add(path)

    for path in FILES:
        walk(path, ())
    assert cycles == []


def test_every_package_is_listed_for_installation() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = {p.parent for name in BELOW for p in (ROOT / name).rglob("__init__.py")}
    expected = {"clipfake", *(f"clipfake.{'.'.join(p.relative_to(ROOT).parts)}" for p in inits)}
    assert sorted(listed) == sorted(expected)


def test_every_module_has_a_docstring() -> None:
    silent = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstring_of_a_package_lists_its_modules_once(package: Path) -> None:
    listed = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    assert sorted(re.findall(r"\w+\.py\b", listed)) == sorted(modules)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_are_small(package: Path) -> None:
    assert len(list(package.glob("*.py"))) <= 16  # __init__.py among them


def test_no_two_classes_share_a_name() -> None:
    modules = defaultdict(list)
    for path in {*FILES, *ROOT.glob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_identifiers_say_what_they_hold() -> None:
    """Names such as `told` do not say what they hold."""
    vague = {"told", "said", "asked", "tell"}
    problems = []
    for path in [*FILES, *ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
        # `tell` is a method of files in Python
        for before, token in pairwise(tokens):
            if token.type == tokenize.NAME and token.string in vague and before.string not in (".", "def"):
                problems.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert problems == []


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; from clipfake.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    """A store or a head from an untrusted source must not be able to run code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {name.name for name in node.names} | {getattr(node, "module", "")}
            assert modules.isdisjoint({"pickle", "joblib", "dill", "marshal"}), ast.unparse(node)
        if isinstance(node, ast.Call):
            weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            assert ast.unparse(node.func) != "torch.load" or weights_only, "use safetensors"
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_numpy_orders_no_texts(path: Path) -> None:
    # numpy 2.4.6 orders strings of variable length wrongly; conftest.py refuses such calls while the tests run.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ORDERING:
            ordered = [node.func.value, *node.args, *(keyword.value for keyword in node.keywords)]
            assert not any(_is_text(value) for value in ordered), f"{ast.unparse(node)}: see records.TextIndex"


def _is_text(value: ast.expr) -> bool:
    """True for a column of texts, or a part of one; False for a list of its values."""
    match value:
        case ast.Subscript():
            return _is_text(value.value)
        case ast.Call(func=ast.Attribute(attr="column"), args=[ast.Constant(value=name)]):
            return COLUMNS.get(str(name)) == TEXT
        case ast.Call(func=ast.Name(id="names")):
            return True
        case ast.Attribute(attr=name):
            return COLUMNS.get(name) == TEXT and ast.unparse(value) not in CODES
        case ast.Tuple() | ast.List():
            return any(_is_text(element) for element in value.elts)
    return False
