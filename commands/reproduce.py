"""`clipfake reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.atomic_files import require_local, write_text
from ..errors import ClipfakeError, SourceError
from .choices import Precision
from .options import (
    MODEL,
    DeviceOption,
    FoldersArgument,
    FoldersOption,
    JsonOption,
    PrecisionOption,
    SeedOption,
    UntrainedOption,
    chosen_folders,
)
from .terminal import print_message, print_result

if TYPE_CHECKING:
    from ..detector.evaluation.reproduce import Backbone, PaperOptions, PaperRun
    from ..indexer.index_run import Folders
    from ..store.snapshot import Snapshot


def reproduce_command(
    arguments: FoldersArgument = None,
    folders: FoldersOption = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for the stores, the result of each run, and the tables.", file_okay=False
        ),
    ] = Path("reproduce"),
    b32: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Hub id or directory of the ViT-B/32 encoder.",
            show_default="CLIP's",
            rich_help_panel=MODEL,
        ),
    ] = "openai/clip-vit-base-patch32",
    b16: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Hub id or directory of the ViT-B/16 encoder.",
            show_default="CLIP's",
            rich_help_panel=MODEL,
        ),
    ] = "openai/clip-vit-base-patch16",
    untrained: UntrainedOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    epochs: Annotated[
        int, typer.Option(min=1, max=500, metavar="N", help="Maximum number of epochs; training stops early.")
    ] = 20,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Reproduce the source paper: its ten tables beside the results measured here, and the runs it leaves out.

    Indexes ArtiFact's cycle_gan and pro_gan twice (ViT-B/32; ViT-B/16 with texts) and trains every head. Resumable:
    after an interruption, run the same command again. Runs that the data or encoders do not allow are reported.

    clipfake reproduce --folders ARTIFACT/cycle_gan ARTIFACT/pro_gan --out reproduce
    """
    from ..detector.evaluation.reproduce import PAPER_RUNS, SOURCES, PaperOptions
    from ..indexer.encoders.encoder_name import with_random_weights
    from ..indexer.encoders.load import load_encoder
    from ..indexer.sources.folders import expand
    from ..session import encoder_notice
    from ..show.reproduce_tables import paper_tables, write_tables

    sources = [source for source in expand(chosen_folders(arguments, folders)) if source.name in SOURCES]
    if not sources:
        raise SourceError(
            f"none of these folders is {' or '.join(SOURCES)}, which the paper used; name these folders of ArtiFact"
        )
    require_local(out, "--out")
    options = PaperOptions(epochs, seed)
    results: dict[str, Any] = {}
    missing: dict[str, str] = {}
    notices: list[str] = []
    backbones: dict[Backbone, str] = {"b32": b32, "b16": b16}
    for backbone, encoder in backbones.items():
        paper_runs = [paper_run for paper_run in PAPER_RUNS if paper_run.backbone == backbone]
        try:
            name = with_random_weights(encoder) if untrained else encoder
            model = load_encoder(name, device=device, precision=precision.value)
            snapshot = index_sources(sources, out / backbone, model)
        except SourceError:
            raise
        except ClipfakeError as e:
            missing |= {paper_run.name: str(e) for paper_run in paper_runs}
            continue
        if (notice := encoder_notice(model.space.encoder)) and notice not in notices:
            notices.append(notice)
        for paper_run in paper_runs:
            outcome = run_or_load(snapshot, paper_run, options, out / "runs")
            if isinstance(outcome, str):
                missing[paper_run.name] = outcome
            else:
                results[paper_run.name] = outcome
    result = {"runs": results, "missing": missing, "notices": notices, "encoders": backbones}
    write_text(out / "reproduced.json", json.dumps(result) + "\n")
    written = write_tables(result, out)
    print_result(result if as_json else paper_tables(result))
    for path in written:
        print_message(str(path))
    if not results:
        raise SystemExit(1)


def index_sources(folders: Folders, store: Path, encoder: Any) -> Snapshot:
    """Index folders into a store of their own, and return its newest snapshot."""
    from ..indexer.index import IndexOptions, index
    from ..indexer.sources.folders import count, expand
    from ..show.progress_display import index_progress
    from ..store.store import Store

    opened, sources = Store.create(store, encoder.space), expand(folders)
    with index_progress(lambda: count(sources)) as bar:
        report = index(sources, opened, encoder, IndexOptions(thumbnails=False), bar)
    if report.interrupted:
        raise KeyboardInterrupt
    return opened.snapshot()


def run_or_load(snapshot: Snapshot, paper_run: PaperRun, options: PaperOptions, folder: Path) -> dict[str, Any] | str:
    """Return the result of a run, from its file if it ran before on the same rows, or the reason why it cannot run."""
    from ..detector.evaluation.reproduce import missing_data, run, run_inputs
    from ..show.progress_display import status_line

    if reason := missing_data(snapshot, paper_run):
        return reason
    path = folder / f"{paper_run.name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["asked"] == json.loads(json.dumps(run_inputs(snapshot, options))):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no result yet, or not readable as one
    try:
        with status_line(paper_run.name) as show_step:
            content = run(snapshot, paper_run, options, show_step).to_dict()
    except ClipfakeError as e:
        return str(e)
    write_text(path, json.dumps(content) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
