"""`clipfake query`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .choices import Precision
from .options import (
    DEFAULT_HEAD,
    OUTPUT,
    STORE,
    DeviceOption,
    EncoderOption,
    FollowLinksOption,
    NameOption,
    PrecisionOption,
    SearchBackendOption,
    StoreOption,
    searcher_for,
    share_between,
)
from .terminal import LOADING, print_line, print_message, print_result, transient_message

if TYPE_CHECKING:
    from ..detector.verdict import Refusal, Verdict

MAX_PANELS = 50  # on one contact sheet
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", "")  # without a suffix it is a PNG


def query_command(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, zip or tar archives, or - for one image on standard input.")
    ],
    store: StoreOption = STORE,
    head: NameOption = DEFAULT_HEAD,
    k: Annotated[
        int, typer.Option("-k", min=1, max=50, metavar="N", help="Maximum number of neighbours of each class.")
    ] = 9,
    prior: Annotated[
        float,
        typer.Option(
            parser=share_between(0.0001, 0.9999),
            metavar="SHARE",
            help="Expected share of fakes, as 1% or 0.01; it changes the probability, not the answer.",
        ),
    ] = 0.5,
    error: Annotated[
        float,
        typer.Option(
            parser=share_between(0.0001, 0.5),
            metavar="SHARE",
            help="Accepted share, as 5%, of real and of fake images like the stored ones whose true class is excluded.",
        ),
    ] = 0.05,
    check_stability: Annotated[
        bool,
        typer.Option(
            "--check-stability",
            metavar="",
            help="Answer unsure if a recompressed (JPEG, WebP), reduced or blurred copy gets another answer.",
        ),
    ] = False,
    follow_links: FollowLinksOption = False,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
    search_backend: SearchBackendOption = "",
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a contact sheet to this PNG or JPEG.", dir_okay=False, rich_help_panel=OUTPUT
        ),
    ] = None,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            metavar="",
            help="Print one CSV line per image; an apostrophe precedes names that begin like a formula.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", metavar="", help="Print one JSON object per image and line.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Judge images: real, fake or unsure, with the nearest known images as evidence.

    clipfake query suspicious.jpg --store mystore --sheet evidence.png
    """
    from ..detector.detector import QueryOptions
    from ..detector.evidence import EvidenceOptions
    from ..detector.verdict import Refusal
    from ..indexer.encoder_spec import EncoderSpec
    from ..session import Session
    from ..show.images.contact_sheet import SheetEntry, write_sheet

    if as_csv and as_json:
        raise typer.BadParameter("only one of --csv and --json can be printed", param_hint="--csv")
    if sheet and sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise typer.BadParameter(f"{sheet} is neither a .png nor a .jpg file", param_hint="--sheet")
    session = Session(
        store,
        head,
        encoder=EncoderSpec(encoder or "", device, precision.value),
        evidence=EvidenceOptions(k=k),
        searcher_for=searcher_for(search_backend),
    )
    _ = session.detector  # a missing store or head is reported before torch is imported
    session.encoder_spec.ensure_available()
    with transient_message(LOADING):
        _ = session.encoder
    for notice in filter(None, (session.notice, session.detector.notice)):
        print_message(notice)
    write = _json_writer() if as_json else _csv_writer() if as_csv else _panel_writer()
    tally = dict.fromkeys(("fake", "real", "unsure", "not judged"), 0)
    entries: list[SheetEntry] = []
    options = QueryOptions(prior=prior, error=error)
    judged_images = session.judge(images, options, check_stability=check_stability, follow_links=follow_links)
    for image, answer in judged_images:
        if isinstance(answer, Refusal):
            tally["not judged"] += 1
        else:
            tally[answer.verdict] += 1
            if sheet and image.image and len(entries) < MAX_PANELS:
                entries.append(SheetEntry.of(answer, image.image.pixels, session.covered))
        write(answer)
    judged = sum(tally.values()) - tally["not judged"]
    if sheet and entries:
        write_sheet(sheet, entries, session.detector.snapshot.thumbnail)
        print_message(f"contact sheet: {sheet}" + (f" (the first {MAX_PANELS} images)" if judged > MAX_PANELS else ""))
    if not (as_json or as_csv):
        _summarise(tally, judged)
    if tally["not judged"] and not judged:
        raise SystemExit(1)


def _json_writer() -> Callable[[Verdict | Refusal], None]:
    return lambda answer: print_result(answer.to_dict())


def _csv_writer() -> Callable[[Verdict | Refusal], None]:
    from ..show.verdict_panel import csv_header, csv_line

    print_line(csv_header())
    return lambda answer: print_line(csv_line(answer))


def _panel_writer() -> Callable[[Verdict | Refusal], None]:
    from ..detector.verdict import Verdict
    from ..show.verdict_panel import VerdictPanel

    def write(answer: Verdict | Refusal) -> None:
        if isinstance(answer, Verdict):
            print_result(VerdictPanel(answer))
        else:
            print_message(f"{answer.image}: {answer.error}")

    return write


def _summarise(tally: dict[str, int], judged: int) -> None:
    """Print the number of images by answer, and the caveat."""
    from ..show.phrasing import CAVEAT

    images = sum(tally.values())
    if images > 1:
        counts = ", ".join(f"{count:,} {answer}" for answer, count in tally.items() if count)
        print_message(f"{images:,} images: {counts}")
    if judged:
        print_message(CAVEAT)
