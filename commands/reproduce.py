"""`clipfake reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.atomic_files import write_text
from ..errors import ClipfakeError, SourceError
from .opening import create_store, notice_of, open_encoder
from .options import DeviceOption, FoldersOption, JsonOption, PrecisionOption
from .terminal import say, show

if TYPE_CHECKING:
    from ..detector.evaluation.reproduce import Backbone, PaperOptions, PaperRun
    from ..indexer.index_run import Folders
    from ..store.snapshot import Snapshot


def reproduce_command(
    folders: FoldersOption,
    out: Annotated[Path, typer.Option(help="For the stores, a file a run, and the tables.")] = Path("reproduce"),
    b32: Annotated[str, typer.Option(help="The encoder ViT-B/32.")] = "openai/clip-vit-base-patch32",
    b16: Annotated[str, typer.Option(help="The encoder ViT-B/16.")] = "openai/clip-vit-base-patch16",
    epochs: Annotated[int, typer.Option(min=1, max=500, help="Of triplets, at most; stops early.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    untrained: Annotated[bool, typer.Option("--untrained", help="Random weights: for trials of this command.")] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """The source paper's ten tables again, beside its own figures, and the runs it leaves out.

    Indexes ArtiFact's cycle_gan and pro_gan twice (ViT-B/32; ViT-B/16 with its texts) and trains every head. What is
    done is kept: stopped, the same command goes on. What cannot be done is told, and the rest is done.

    clipfake reproduce --folders ARTIFACT/cycle_gan ARTIFACT/pro_gan --out reproduce
    """
    from ..detector.evaluation.reproduce import CELLS, SOURCES, PaperOptions
    from ..indexer.sources.folders import expand
    from ..show.reproduce_tables import paper_tables, write_tables

    found = [source for source in expand(folders) if source.name in SOURCES]
    if not found:
        raise SourceError(
            f"none of these folders is {' or '.join(SOURCES)}, which the paper used; name ArtiFact's own folders"
        )
    options = PaperOptions(epochs, seed)
    runs: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    notices: list[str] = []
    backbones: dict[Backbone, str] = {"b32": b32, "b16": b16}
    for backbone, encoder in backbones.items():
        cells = [cell for cell in CELLS if cell.backbone == backbone]
        try:
            model = open_encoder(out / backbone, encoder, untrained=untrained, device=device, precision=precision)
            snapshot = indexed(found, out / backbone, model)
        except SourceError:
            raise
        except ClipfakeError as e:
            lacking |= {cell.name: str(e) for cell in cells}
            continue
        if (said := notice_of(model)) and said not in notices:
            notices.append(said)
        for cell in cells:
            told = outcome(snapshot, cell, options, out / "runs")
            if isinstance(told, str):
                lacking[cell.name] = told
            else:
                runs[cell.name] = told
    result = {"runs": runs, "missing": lacking, "notices": notices, "encoders": backbones}
    write_text(out / "reproduced.json", json.dumps(result) + "\n")
    written = write_tables(result, out)
    show(result if as_json else paper_tables(result))
    for path in written:
        say(str(path))
    if not runs:
        raise SystemExit(1)


def indexed(folders: Folders, store: Path, encoder: Any) -> Snapshot:
    """These folders in a store of their own; there already, it is only looked through."""
    from ..indexer.index import IndexOptions, index
    from ..indexer.sources.folders import count, expand
    from ..show.progress_display import index_progress

    opened, sources = create_store(store, encoder), expand(folders)
    with index_progress(lambda: count(sources)) as bar:
        report = index(sources, opened, encoder, IndexOptions(thumbnails=False), bar)
    if report.interrupted:
        raise KeyboardInterrupt
    return opened.snapshot()


def outcome(snapshot: Snapshot, cell: PaperRun, options: PaperOptions, folder: Path) -> dict[str, Any] | str:
    """A cell's outcome, from its file where it was run before on the same rows; or why there is none."""
    from ..detector.evaluation.reproduce import asked_of, missing, run
    from ..show.progress_display import status_line

    if why := missing(snapshot, cell):
        return why
    path = folder / f"{cell.name}.json"
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["asked"] == json.loads(json.dumps(asked_of(snapshot, options))):
            return told
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not run yet, or a file of something else: it is run again
    try:
        with status_line(cell.name) as tell:
            told = run(snapshot, cell, options, tell).to_dict()
    except ClipfakeError as e:
        return str(e)
    write_text(path, json.dumps(told) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
