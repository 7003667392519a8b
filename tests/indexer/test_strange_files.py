"""Pipes, endless devices, giants, links and other strange files in each place from which files are read.

Every case runs in a process of its own with a limit on time and memory. It must end with a typed error or, where one
image is concerned, with one refused row.
"""

import io
import multiprocessing
import os
import resource
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.errors import ClipfakeError
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index
from clipfake.indexer.sources.folders import expand
from clipfake.store.exchange.import_rows import import_rows
from clipfake.store.store import Store
from conftest import Toy, draw_image
from indexed import store_at

SECONDS = 60  # until a case counts as endless, on a slow machine
MEMORY = 3 << 30  # bytes more than the process has when the case begins
GOOD = draw_image("camera_a", 0)


# Kinds of strange files, made at a path


def giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)  # 4 TiB that take no space


def giant_after(path: Path) -> None:
    """A file whose beginning is in order, and which does not end."""
    with path.open("ab") as file:
        file.truncate(1 << 42)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(100_000))


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "giant": giant,
    "giant after": giant_after,
    "socket": listening,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "dead link": lambda path: path.symlink_to("nowhere"),
    "of proc": lambda path: path.symlink_to("/proc/self/maps"),  # has content, and a size of 0
    "endless of proc": lambda path: path.symlink_to("/proc/self/pagemap"),
    "passwd": lambda path: path.symlink_to("/etc/passwd"),
    "empty": Path.touch,
    "noise": random_bytes,
}
QUICK = ("pipe", "device", "giant", "passwd")  # kinds that are tried at every place in a short run


def put(path: Path, kind: str) -> None:
    """Replace a file by a strange one."""
    if kind != "giant after":
        path.unlink(missing_ok=True)
    KINDS[kind](path)


def outcome_of(action: Callable[[], object]) -> str:
    """Run in another process; "returned", the name of a typed error and its message, or what went wrong."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        with Path("/proc/self/statm").open() as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        try:
            message = f"returned {action()}"
        except ClipfakeError as e:
            message = f"{type(e).__name__}: {e}"
        except BaseException as e:  # noqa: BLE001 - reported by the test
            message = f"UNTYPED {type(e).__name__}: {e}"
        sender.send(message)
        sender.close()
        os._exit(0)

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        return str(receiver.recv()) if receiver.poll(SECONDS) else "ENDLESS"
    except EOFError:
        return "DIED"
    finally:
        process.kill()
        process.join()


def indexed(store: Path, *sources: str | Path, follow_links: bool = False) -> str:
    report = index(expand(sources, follow_links=follow_links), store_at(store), PlainEncoder())
    return (
        f"{report.added} added, {len(report.skipped)} skipped, {sum(p.files for p in report.passed_over.values())} over"
    )


# Sources of images


def tarred(path: Path, mode: str) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("real/a.png")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("real/a.png", GOOD)


def written(content: str) -> Callable[[Path], Any]:
    return lambda path: Path.write_text(path, content)


CSV, JSONL = "file_name,label\nreal/good.png,real\n", '{"file_name": "real/good.png", "label": "real"}\n'
# place in the folder `data` -> what makes an ordinary file there
PLACES: dict[str, Callable[[Path], Any]] = {
    "data/real/image.png": lambda path: path.write_bytes(draw_image("camera_b", 1)),
    "data/real/no_suffix": lambda path: path.write_bytes(draw_image("camera_b", 1)),
    "data/metadata.csv": written(CSV),
    "data/metadata.jsonl": written(JSONL),
    "data/metadata.parquet": lambda path: parquet(path),
    "data/dataset_info.json": written("{}"),
    "data/README.md": written("---\nclass_label: 1\n---\n"),
    "README.md": written("---\nclass_label: 1\n---\n"),
    "t.csv": written(CSV.replace("real/", "data/real/")),
    "t.jsonl": written(JSONL.replace("real/", "data/real/")),
    "t.parquet": lambda path: parquet(path),
    "t.zip": zipped,
    "t.tar": lambda path: tarred(path, "w"),
    "t.tar.gz": lambda path: tarred(path, "w:gz"),
    "t.tar.xz": lambda path: tarred(path, "w:xz"),
}


def parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    table = pyarrow.table({"file_name": ["real/good.png"], "label": ["real"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


@pytest.mark.parametrize("follow_links", [False, True], ids=["", "follow"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_strange_file_as_a_source_ends_soon(tmp_path: Path, place: str, kind: str, follow_links: bool) -> None:
    (tmp_path / "data/real").mkdir(parents=True)
    (tmp_path / "data/real/good.png").write_bytes(GOOD)
    PLACES[place](tmp_path / place)
    put(tmp_path / place, kind)
    sources = [tmp_path / "data"] if "/" in place or place == "README.md" else [tmp_path / "data", tmp_path / place]
    outcome = outcome_of(lambda: indexed(tmp_path / "s", *sources, follow_links=follow_links))
    assert outcome.startswith(("returned", "SourceError")), outcome
    assert "root:" not in outcome
    if place.startswith("data/real"):
        assert outcome.startswith("returned 1 added")


# Rows of a table that names one good image


ROWS = {
    "device": "file:///dev/zero",
    "local": "local:///dev/zero",
    "in capitals": "FILE:///dev/zero",
    "path": "/dev/zero",
    "tty": "/dev/stdin",
    "chain": "zip://a.jpg::file:///dev/zero",
    "cache": "simplecache::file:///dev/zero",
    "blocks": "blockcache::file:///dev/zero",
    "file cache": "filecache::file:///dev/zero",
    "reference": "reference://::file:///dev/zero",
    "tar": "tar://a.jpg::file:///dev/zero",
    "folder": "dir://a.jpg::file:///dev",
    "data": "data://text/plain,hello",
    "ssh": "ssh://host/a.jpg",
    "hdfs": "hdfs://host/a.jpg",
    "dask": "dask://host/a.jpg",
    "jupyter": "jupyter://host/a.jpg",
    "github": "github://a:b@c/a.jpg",
    "git": "git:///tmp:a@b/a.jpg",
    "unknown": "nonsense://host/a.jpg",
    "no host": "https://",
    "bad port": "http://127.0.0.1:99999/a.jpg",
    "refused": "http://127.0.0.1:9/a.jpg",
    "NUL": "a\\u0000b.jpg",
    "NUL in a URL": "https://a\\u0000b/c.jpg",
    "surrogate": "a\\ud800b.jpg",
    "surrogate in a URL": "file:///a\\ud800b.jpg",
    "long name": "x" * 300 + ".jpg",
    "long path": "x/" * 3000 + "a.jpg",
    "long with accents": "é" * 300 + ".jpg",
    "long URL": "https://127.0.0.1:9/" + "x" * 100_000,
    "passwd": "../../../../../../../../etc/passwd",
    "folder itself": ".",
    "user": "~root/a.jpg",
    "memory": "/proc/self/mem",
    "maps": "/proc/self/maps",
    "descriptor": "/proc/self/fd/0",
}


@pytest.mark.parametrize("inside", [False, True], ids=["named", "in a folder"])
@pytest.mark.parametrize("row", ROWS)
def test_strange_path_in_a_table_is_one_refused_row(tmp_path: Path, row: str, inside: bool) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/good.png").write_bytes(GOOD)
    table = tmp_path / ("data/metadata.jsonl" if inside else "data/t.jsonl")
    table.write_text("".join(f'{{"file_name": "{path}", "label": "real"}}\n' for path in (ROWS[row], "good.png")))
    outcome = outcome_of(lambda: indexed(tmp_path / "s", table.parent if inside else table))
    assert outcome.startswith("returned 1 added, 1 skipped"), outcome


# Files of a store, a head, an export and an encoder


@pytest.fixture(scope="module")
def whole_store(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with deleted rows, named vectors, an index, a quarantine list and a head."""
    from clipfake.indexer.quarantine import QuarantinedImage, write_quarantine
    from clipfake.store.maintenance.build_index import build_index
    from clipfake.store.named_vectors import named_vectors_writer
    from clipfake.store.space import Space

    store = toy.copy(tmp_path_factory.mktemp("whole") / "store")
    with store.writer() as writer:
        writer.delete(np.arange(300) == 3)
    vectors = np.random.default_rng(0).normal(size=(299, 4)).astype(np.float32)
    with named_vectors_writer(store.folder, "depth", Space("deep", "cd" * 32, 4)) as column:
        column.put(np.arange(299), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    build_index(store, kind="plain")
    write_quarantine(store.folder, {"a": QuarantinedImage("a", "/a", "damaged", 1, 1)})
    return Path(store.folder)


def read_everything(folder: Path) -> None:
    """Read all files of a store, whatever is wrong with some of them; without the threads of OpenMP, after a fork."""
    from clipfake.detector.head import Head
    from clipfake.indexer.quarantine import read_quarantine
    from clipfake.store.maintenance.verify import verify
    from clipfake.store.named_vectors import open_named_vectors

    steps: list[Callable[[Store], object]] = [
        lambda store: store.snapshot().rows,
        lambda store: np.asarray(store.snapshot().vectors()),
        lambda store: [
            open_named_vectors(store.folder, "depth").shard_vectors(p) for p in store.snapshot().manifest.parts
        ],
        lambda store: Head.load(store.folder / "heads/default"),
        lambda store: read_quarantine(store.folder),
        lambda store: verify(store.folder),
    ]
    for step in steps:
        try:
            step(Store.open(folder))
        except ClipfakeError:
            continue


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["pipe", "device", "giant"])
def test_strange_files_in_a_store_end_soon(whole_store: Path, tmp_path: Path, kind: str) -> None:
    outcomes = {}
    for name in files_of(whole_store):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(whole_store, tmp_path / "s")
        put(tmp_path / "s" / name, kind)
        outcomes[name] = outcome_of(lambda: read_everything(tmp_path / "s"))
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "returned None"} == {}


@pytest.mark.parametrize("kind", ["pipe", "device", "giant"])
def test_strange_files_in_an_export_end_soon(toy: Toy, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    from clipfake.store.exchange.export_rows import export_rows

    export_rows(toy.store.snapshot(), tmp_path / "e")
    outcomes = {}
    for name in files_of(tmp_path / "e"):
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        shutil.copytree(tmp_path / "e", tmp_path / "f")
        put(tmp_path / "f" / name, kind)
        outcomes[name] = outcome_of(lambda: import_rows(tmp_path / "f", tmp_path / "i", toy.encoder.space))
    good = ("SourceError", "StoreError", "BadBlock", "Damaged")
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith(good)} == {}


@pytest.mark.parametrize("kind", ["pipe", "device", "giant"])
def test_strange_files_of_an_encoder_end_soon(tmp_path: Path, kind: str) -> None:
    from clipfake.indexer.encoders.load import load_encoder
    from clipfake.simulated.standin_encoder import build_standin

    build_standin(tmp_path / "e")
    outcomes = {}
    for name in [*files_of(tmp_path / "e"), "added_tokens.json"]:
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        shutil.copytree(tmp_path / "e", tmp_path / "f")
        put(tmp_path / "f" / name, kind)
        outcomes[name] = outcome_of(lambda: load_encoder(str(tmp_path / "f"), device="cpu"))
    good = ("EncoderError", "returned")
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith(good)} == {}
