"""`clipfake demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import say


def demo_command(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder for everything it writes; it may be deleted afterwards.")
    ] = Path("demo"),
    images_per_source: Annotated[
        int, typer.Option(min=40, metavar="N", help="Number of images of each of the seven simulated sources.")
    ] = 90,
) -> None:
    """Run the whole job on a small simulated data set, offline: index, train, query two images.

    clipfake demo demo
    """
    from ..simulated.images import SOURCES, simulated, write_sample
    from ..simulated.notice import NOTICE
    from ..simulated.standin_encoder import build_standin

    say(NOTICE)
    sample, store, asks = folder / "sample", folder / "store", folder / "asked"
    say(f"\n[1/5] a sample of {len(SOURCES)} simulated sources, {images_per_source} images each: {sample}")
    folders = [str(path) for path in write_sample(sample, images_per_source=images_per_source)]
    encoder = build_standin(folder)
    paths = {}
    asks.mkdir(exist_ok=True)
    for name, source in (("camera", 1), ("generated", 4)):  # two images that are not in the sample
        paths[name] = asks / f"{name}.jpg"
        paths[name].write_bytes(simulated(source, 5, seed=1))
    sheet, page = folder / "contact-sheet.png", folder / "report.html"
    spread_folders = [part for path in folders for part in ("--folders", path)]
    at = ["--store", str(store)]
    queries = [str(path) for path in paths.values()]
    steps = (
        ["index", *spread_folders, *at, "--encoder", str(encoder)],
        ["train", "--from-store", *at],
        ["query", *queries, *at, "--sheet", str(sheet)],
        ["report", *at, "--out", str(page)],
    )
    for number, step in enumerate(steps, start=2):
        shown = step if number > 2 else ["index", "--folders", f"{sample}/*", *step[step.index("--store") :]]
        say(f"\n[{number}/5] clipfake {' '.join(shown)}")
        context.find_root().command.main(step, prog_name="clipfake", standalone_mode=False)
    say(f"\ncontact sheet  {sheet}\nreport         {page}")
    say(f"in a browser   clipfake serve --store {store}\nyour own       clipfake index --folders YOUR/DATA/*")
