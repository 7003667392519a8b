"""`clipfake demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_message


def demo_command(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder for everything that is written; it may be deleted afterwards.")
    ] = Path("demo"),
    images_per_source: Annotated[
        int, typer.Option(min=40, metavar="N", help="Number of images of each of the seven simulated sources.")
    ] = 90,
) -> None:
    """Index, train, query two images and write a report, on a small simulated data set and offline.

    clipfake demo demo
    """
    from ..simulated.images import SOURCES, simulated, write_sample
    from ..simulated.notice import NOTICE
    from ..simulated.standin_encoder import build_standin

    print_message(NOTICE)
    sample, store, query_folder = folder / "sample", folder / "store", folder / "queries"
    counts = f"{images_per_source} images of each of {len(SOURCES)} simulated sources"
    print_message("", f"[1/5] writing {counts} to {sample}")
    folders = [str(path) for path in write_sample(sample, images_per_source=images_per_source)]
    encoder = build_standin(folder)
    paths = {}
    query_folder.mkdir(exist_ok=True)
    for name, source in (("camera", 1), ("generated", 4)):  # two images that are not in the sample
        paths[name] = query_folder / f"{name}.jpg"
        paths[name].write_bytes(simulated(source, 5, seed=1))
    sheet, page = folder / "contact-sheet.png", folder / "report.html"
    spread_folders = [part for path in folders for part in ("--folders", path)]
    store_option = ["--store", str(store)]
    queries = [str(path) for path in paths.values()]
    steps = (
        ["index", *spread_folders, *store_option, "--encoder", str(encoder)],
        ["train", "--from-store", *store_option],
        ["query", *queries, *store_option, "--sheet", str(sheet)],
        ["report", *store_option, "--out", str(page)],
    )
    for number, step in enumerate(steps, start=2):
        printed = step if number > 2 else ["index", "--folders", f"{sample}/*", *step[step.index("--store") :]]
        print_message("", f"[{number}/5] clipfake {' '.join(printed)}")
        context.find_root().command.main(step, prog_name="clipfake", standalone_mode=False)
    print_message("", f"contact sheet    {sheet}", f"report           {page}")
    print_message(f"open the page    clipfake serve --store {store}")
    print_message("use your images  clipfake index --folders YOUR/DATA/*")
