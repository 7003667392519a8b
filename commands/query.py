"""`clipfake query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SourceError
from .opening import encoder_name, notice, open_encoder
from .options import (
    DEFAULT_HEAD,
    STORE,
    DeviceOption,
    EncoderOption,
    NameOption,
    PrecisionOption,
    SearchAtOption,
    StoreOption,
    elsewhere_of,
    share_between,
)
from .terminal import LOADING, passing, say, say_out, show

SHEET_MOST = 50  # panels on one sheet
SHEETS = (".png", ".jpg", ".jpeg", "")  # "" is a PNG too


def query_command(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, zip or tar archives, or - for one image on standard input.")
    ],
    store: StoreOption = STORE,
    head: NameOption = DEFAULT_HEAD,
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="Nearest known images of each class, at most.")] = 9,
    prior: Annotated[
        float,
        typer.Option(
            parser=share_between(0.0001, 0.9999),
            metavar="SHARE",
            help="Share of fakes you expect, as 1% or 0.01; changes the probability, never the answer.",
        ),
    ] = 0.5,
    error: Annotated[
        float,
        typer.Option(
            parser=share_between(0.0001, 0.5),
            metavar="SHARE",
            help="How often the truth may be ruled out, of real and of fake images alike, as 5% or 0.05; the smaller, "
            "the more unsure.",
        ),
    ] = 0.05,
    steady: Annotated[bool, typer.Option("--steady", help="Unsure if JPEG or half size changes the answer.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet here, as PNG or JPEG.", dir_okay=False)
    ] = None,
    search_at: SearchAtOption = "",
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_csv: Annotated[bool, typer.Option("--csv", help="One line of CSV an image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, one line an image.")] = False,
) -> None:
    """Real, fake or unsure, and the nearest known images that say so.

    clipfake query suspicious.jpg --store mystore --sheet evidence.png
    """
    from ..detector.detector import QueryOptions, VectorDetector
    from ..detector.evidence import EvidenceOptions
    from ..detector.verdict import Refusal, Verdict
    from ..indexer.encoders.hub import bring
    from ..show.contact_sheet import SheetEntry, write_sheet
    from ..show.phrasing import CAVEAT
    from ..show.verdict_panel import VerdictPanel, csv_header, csv_line
    from ..store.store import Store

    if sheet and sheet.suffix.lower() not in SHEETS:
        raise typer.BadParameter(f"{sheet} is neither .png nor .jpg", param_hint="--sheet")
    opened = Store.open(store)
    detector = VectorDetector.load(opened, head, EvidenceOptions(k=k), elsewhere_of(search_at))
    bring(encoder_name(store, encoder))
    with passing(LOADING):
        from ..indexer.embedding import (  # which brings torch: a wrong store or head is told before it
            AFTER,
            ARCHIVES,
            embed_images,
        )
        from ..indexer.sources.image_ref import is_url

        if far := [image for image in images if is_url(image) and not image.lower().endswith(ARCHIVES)]:
            raise SourceError(f"{far[0]} is not on this machine; save the image and name the file")

        model = open_encoder(store, encoder, head=head, device=device, precision=precision)
    model.space.require(detector.snapshot.space, f"the store {store}")
    notice(model)
    question = QueryOptions(prior=prior, error=error)
    entries: list[SheetEntry] = []
    tally = dict.fromkeys(("fake", "real", "unsure", "not judged"), 0)
    if as_csv:
        say_out(csv_header())
    for asked in embed_images(model, images, views=steady):
        answer: Verdict | Refusal
        if asked.image is None or asked.vector is None:
            answer = Refusal(asked.name, asked.error)
        else:
            answer = detector.judge_one(asked.name, asked.vector, asked.image.digest, question)
            if asked.views is not None:
                answer = detector.steady(
                    answer, dict(zip(AFTER, asked.views, strict=True)), asked.image.digest, question
                )
            if sheet and len(entries) < SHEET_MOST:
                entries.append(SheetEntry.of(answer, asked.image.pixels))
        tally[answer.verdict if isinstance(answer, Verdict) else "not judged"] += 1
        if as_json:
            show(answer.to_dict())
        elif as_csv:
            say_out(csv_line(answer))
        elif isinstance(answer, Verdict):
            show(VerdictPanel(answer))
        else:
            say(f"{answer.image}: {answer.error}")
    asked_about = sum(tally.values())
    judged = asked_about - tally["not judged"]
    if sheet and entries:
        write_sheet(sheet, entries, detector.snapshot.thumbnail)
        say(f"contact sheet: {sheet}" + (f" (the first {SHEET_MOST})" if judged > SHEET_MOST else ""))
    if not (as_json or as_csv):
        if asked_about > 1:
            told = ", ".join(f"{number:,} {word}" for word, number in tally.items() if number)
            say(f"{asked_about:,} images: {told}")
        if judged:
            say(CAVEAT)
    if tally["not judged"] and not judged:
        raise SystemExit(1)
