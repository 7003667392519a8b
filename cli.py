"""The command line: parses, calls, prints. The one place that knows every wing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .store.durable import write_text
from .store.errors import ClipfakeError, SourceError

if TYPE_CHECKING:  # everything heavy is imported by the command that needs it
    from .indexer.encoder import Encoder
    from .store.store import Store

app = typer.Typer(
    name="clipfake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Index millions of images once; ask for ever after: is this one fake, and which known images say so?",
)

store_app = typer.Typer(no_args_is_help=True, help="Look after a store.")
bank_app = typer.Typer(no_args_is_help=True, help="The rows that evidence is drawn from: add and remove a source.")
app.add_typer(store_app, name="store")
app.add_typer(bank_app, name="bank")

# Options that take several values: the shell turns `--folders data/*` into `--folders a b c`.
SPREADING = ("--folders",)
DEFAULT_ENCODER = "openai/clip-vit-base-patch32"

StoreOption = Annotated[Path, typer.Option("--store", envvar="CLIPFAKE_STORE", help="Folder of the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
FoldersOption = Annotated[
    list[str], typer.Option("--folders", help="Folders, or a quoted pattern; as many as you like.")
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder", help=f"Hub id or directory.  [default: the store's own, for a new store {DEFAULT_ENCODER}]"
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto (float32 on a CPU, half on a GPU), float32, bf16 or fp16.")
]
NameOption = Annotated[str, typer.Option("--head", help="Name of the head, where a store has several.")]
STORE = Path("clipfake-store")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exit 0: done; 1: an error of ours, told on stderr; 2: wrong usage."""
    try:
        app(args=spread(sys.argv[1:] if arguments is None else arguments), prog_name="clipfake")
    except ClipfakeError as e:
        say(f"clipfake: {e}")
        raise SystemExit(1) from e
    except KeyboardInterrupt as e:
        say("clipfake: stopped; what was stored stays")
        raise SystemExit(130) from e
    except BrokenPipeError:  # the reader of our output has gone: `clipfake query ... | head`
        sys.stderr.close()
        raise SystemExit(0) from None


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option that takes several values before each of them.

    >>> spread(["index", "--folders", "a", "b", "--store", "s"])
    ['index', '--folders', 'a', '--folders', 'b', '--store', 's']
    """
    result: list[str] = []
    option = ""  # the spreading option whose values are being read
    for argument in arguments:
        if argument in SPREADING:
            option = argument
        elif option and not argument.startswith("--"):
            result += [option, argument]
        else:
            option = ""
            result.append(argument)
    return result


@app.command("index")
def index_command(
    folders: FoldersOption,
    store: StoreOption = STORE,
    encoder: EncoderOption = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Random weights from a seed: for speed only.")] = False,
    text: Annotated[
        bool, typer.Option(help="Embed each distinct category, where the encoder has a text tower.")
    ] = True,
    thumbnails: Annotated[bool, typer.Option(help="Keep a small picture of each image.")] = True,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images the encoder sees at once.  [default: 64, on a GPU 1024]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That decode.  [default: one a core]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most.")] = None,
    max_bad: Annotated[str, typer.Option(help="End the run if more images than this cannot be read.")] = "100%",
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Try bad ones again.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Drop rows of these folders whose file is gone.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n equal parts, for many machines.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Only count classes, before and after binarising.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring every image of some folders into a store.

    Understands ArtiFact's folders (metadata.csv), real/ and fake/ trees, and folders without labels. Running it again
    does nothing; after an interruption it goes on.

    clipfake index --folders data/* --store mystore
    """
    from .indexer.folders import expand
    from .indexer.index import IndexOptions, index, plan
    from .show.screen import class_table, index_summary, progress_of

    found = expand(folders)
    if dry_run or stats:
        planned = {"dry_run": True, **plan(found, limit).as_json()}
        drawn = class_table(planned) if stats else index_summary(planned, planned=True)
        show(planned if as_json else drawn)
        return
    model = open_encoder(store, encoder, untrained=untrained, device=device, precision=precision)
    notice(model)
    options = IndexOptions(
        batch_size=batch_size,
        threads=threads or IndexOptions.threads,
        text=text,
        thumbnails=thumbnails,
        limit=limit,
        max_bad=share_of(max_bad),
        retry_quarantined=retry_quarantined,
        sync=sync,
        shard=part_of(shard),
    )
    with progress_of(lambda: plan(found, limit).listed) as progress:
        report = index(found, create_store(store, model), model, options, progress)
    show(report.as_json() if as_json else index_summary(report.as_json()))
    if report.interrupted:
        say(f"stopped; {report.added + report.replaced} images of this run are stored. Run the same command to go on.")
        raise SystemExit(130)
    if not as_json:
        say(f"next: clipfake train --from-store --store {store}")


@app.command("query")
def query_command(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, zip or tar archives, or - for one image on standard input.")
    ],
    store: StoreOption = STORE,
    head: NameOption = "default",
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="Witnesses of each class.")] = 9,
    prior: Annotated[float, typer.Option(min=0.0001, max=0.9999, help="Share of fakes you expect.")] = 0.5,
    error: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Wrong answers you accept, else unsure.")] = 0.05,
    steady: Annotated[bool, typer.Option("--steady", help="Unsure if JPEG or half size changes the answer.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet here (PNG).")] = None,
    encoder: EncoderOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_csv: Annotated[bool, typer.Option("--csv", help="One line of CSV an image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, one line an image.")] = False,
) -> None:
    """Real, fake or unsure, and the nearest known images that say so.

    clipfake query suspicious.jpg --store mystore --sheet evidence.png
    """
    from .detector.detector import Detector, Question
    from .detector.evidence import Rules
    from .detector.verdict import Refusal, Verdict
    from .indexer.ask import AFTER, ask
    from .show.card import card, csv_header, csv_line
    from .show.sheet import Entry, write_sheet
    from .store.store import Store

    opened = Store.open(store)
    detector = Detector.load(opened, head, Rules(k=k))
    model = open_encoder(store, encoder, device=device, precision=precision)
    model.space.require(detector.snapshot.space, f"the store {store}")
    notice(model)
    question = Question(prior=prior, error=error)
    entries: list[Entry] = []
    judged = refused = 0
    if as_csv:
        say_out(csv_header())
    for asked in ask(model, images, views=steady):
        answer: Verdict | Refusal
        if asked.image is None or asked.vector is None:
            answer, refused = Refusal(asked.name, asked.error), refused + 1
        else:
            answer = detector.judge_one(asked.name, asked.vector, asked.image.digest, question)
            if asked.views is not None:
                answer = detector.steady(
                    answer, dict(zip(AFTER, asked.views, strict=True)), asked.image.digest, question
                )
            judged += 1
            if sheet and len(entries) < SHEET_MOST:
                entries.append(Entry.of(answer, asked.image.pixels))
        if as_json:
            show(answer.as_json())
        elif as_csv:
            say_out(csv_line(answer))
        elif isinstance(answer, Verdict):
            show(card(answer))
        else:
            say(f"{answer.image}: {answer.error}")
    if sheet and entries:
        write_sheet(sheet, entries, detector.snapshot.thumbnail)
        say(f"contact sheet: {sheet}" + (f" (the first {SHEET_MOST})" if judged > SHEET_MOST else ""))
    if refused and not judged:
        raise SystemExit(1)


@app.command("train")
def train_command(
    store: StoreOption = STORE,
    from_store: Annotated[bool, typer.Option("--from-store", help="Train from the stored vectors (always so).")] = True,
    head: NameOption = "default",
    kind: Annotated[str, typer.Option(help="linear or mlp; with text: sum, product, concat or triple.")] = "linear",
    anchor: Annotated[str, typer.Option(help="Class of the triplets' anchors: real, fake or both.")] = "real",
    match: Annotated[str, typer.Option(help="What a triplet's rows share: none, category or source.")] = "none",
    mining: Annotated[str, typer.Option(help="random, semihard or batch-hard.")] = "random",
    epochs: Annotated[int, typer.Option(min=1, max=500, help="At most; stops early.")] = 20,
    sources: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    balanced: Annotated[bool, typer.Option("--balanced", help="As many real as fake rows.")] = False,
    split: Annotated[
        str, typer.Option(help="paper, paper-text or grouped (copies on one side).  [default: paper]")
    ] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head from the stored vectors, with its baselines beside it, and calibrate its verdicts.

    The source paper's pipeline: a triplet projection to 128 dimensions, then an SVM, split 70/20/10. No image is read.

    clipfake train --from-store --store mystore
    """
    from .detector.head import head_folder
    from .detector.heldout import calibrate
    from .detector.train import TrainOptions, train
    from .detector.triplet import TripletOptions
    from .show.screen import status_of
    from .show.training import training_summary
    from .store.store import Store

    triplet = TripletOptions(anchor=anchor, match=match, mining=mining, epochs=epochs)  # type: ignore[arg-type]
    chosen = tuple(filter(None, sources.split(",")))
    options = TrainOptions(kind, triplet, sources=chosen, balanced=balanced, recipe=split, seed=seed)
    snapshot = Store.open(store).snapshot()
    folder = head_folder(store, head)
    with status_of("training") as tell:
        trained = train(snapshot, options, tell)
        calibrated = calibrate(snapshot, trained.head, options, progress=tell)
    trained.head.save(folder)
    calibrated.calibration.save(folder)
    report = {**trained.as_json(), "detector": calibrated.as_json(), "saved": str(folder)}
    write_text(folder / "report.json", json.dumps(report) + "\n")
    show(report if as_json else training_summary(report))
    if not as_json:
        say(f"next: clipfake query IMAGE --store {store}")


def share_of(told: str) -> float:
    """A share as people write it.

    >>> share_of("1%"), share_of("0.25")
    (0.01, 0.25)
    """
    try:
        share = float(told.removesuffix("%")) / (100 if told.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"{told} is no share; write 1% or 0.01") from e
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{told} is not between 0% and 100%")
    return share


def part_of(told: str) -> tuple[int, int] | None:
    """The i-th of n parts, counted from 1 on the command line.

    >>> part_of("2/8"), part_of("")
    ((1, 8), None)
    """
    if not told:
        return None
    part, _, parts = told.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"{told} is no part; write 1/8 to 8/8", param_hint="--shard")
    return int(part) - 1, int(parts)


SHEET_MOST = 50  # panels on one sheet


@app.command("report")
def report_command(
    store: StoreOption = STORE,
    head: NameOption = "default",
    out: Annotated[Path, typer.Option(help="The page; figures go to a folder beside it.")] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write the report of a head: one page that needs nothing else, and PNG, SVG and CSV of each figure.

    clipfake report --store mystore --out report.html
    """
    from .detector.detector import Detector
    from .detector.head import head_folder
    from .indexer.standin import NOTICE, is_standin
    from .show.report import write_report
    from .store.store import Store

    detector = Detector.load(Store.open(store), head)
    said = NOTICE if is_standin(detector.head.space.encoder) else ""
    written = write_report(
        detector, head_folder(store, head), out, title=f"clipfake: {store.name}, {head}", notice=said
    )
    show({"report": str(out), "figures": [str(path) for path in written[1:]]} if as_json else f"report: {out}")


@store_app.command("info")
def store_info_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """What a store holds: sizes, labels, sources, encoder, indexes, heads."""
    from .show.store import store_info
    from .store.info import info
    from .store.store import Store

    told = info(Store.open(store)).as_json()
    show(told if as_json else store_info(told))


@store_app.command("snapshots")
def store_snapshots_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """The snapshots one can go back to."""
    from .show.store import history as history_table
    from .store.info import history
    from .store.store import Store

    told = history(Store.open(store)).as_json()
    show(told if as_json else history_table(told))


@store_app.command("undo")
def store_undo_command(
    number: Annotated[int, typer.Argument(help="Of the snapshot to go back to.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Go back to the rows of an earlier snapshot. Nothing is lost: this too can be undone."""
    from .store.store import Store

    snapshot = Store.open(store).undo(number)
    told = {"snapshot": snapshot.number, "rows": len(snapshot)}
    show(told if as_json else f"snapshot {snapshot.number} has the {len(snapshot):,} rows of snapshot {number}")


@store_app.command("index")
def store_index_command(
    store: StoreOption = STORE,
    kind: Annotated[str, typer.Option(help="auto, or the kind of the index.")] = "auto",
    anew: Annotated[bool, typer.Option("--anew", help="Build it again even if it could be added to.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build or add to the k-NN indexes, one a label. Search is right without them, and quicker with them."""
    from .show.store import built
    from .store.index import build_index
    from .store.store import Store

    told = build_index(Store.open(store), kind, seed=seed, anew=anew).as_json()  # type: ignore[arg-type]
    show(told if as_json else built(told))


@bank_app.command("add")
def bank_add_command(
    folder: Annotated[str, typer.Argument(help="Folder, zip or tar of images.")],
    source: Annotated[str, typer.Option("--source", help="What to call them.")],
    label: Annotated[str, typer.Option("--label", help="real or fake.")],
    store: StoreOption = STORE,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make the next query know these images, without training.

    clipfake bank add new-generator/ --source new-generator --label fake --store mystore
    """
    from .indexer.folders import expand
    from .indexer.index import index
    from .indexer.named import Named
    from .show.screen import index_summary
    from .store.block import FAKE, REAL
    from .store.store import Store

    labels = {"real": REAL, "fake": FAKE}
    if label not in labels:
        raise typer.BadParameter("one of real, fake", param_hint="--label")
    opened = Store.open(store)
    model = open_encoder(store, None, device=device)
    notice(model)
    report = index([Named(one, source, labels[label]) for one in expand([folder])], opened, model)
    show(report.as_json() if as_json else index_summary(report.as_json()))


@bank_app.command("remove")
def bank_remove_command(
    source: Annotated[str, typer.Argument(help="Name of the source.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Take a source's rows out of the bank; `clipfake store undo` brings them back."""
    from .store.store import Store

    with Store.open(store).writer(f"bank remove {source}") as writer:
        where = writer.snapshot.column("sources") == source
        if not where.any():
            raise SourceError(f"the store {store} has no source {source}; `clipfake store info` lists them")
        removed = writer.delete(where)
    show({"source": source, "removed": removed} if as_json else f"{removed:,} rows of {source} removed")


@app.command("bench")
def bench_command(
    encoder: Annotated[str, typer.Option("--encoder", help="Hub id or directory of a CLIP.")] = DEFAULT_ENCODER,
    untrained: Annotated[bool, typer.Option("--untrained", help="Random weights from a seed.")] = False,
    folders: Annotated[list[str] | None, typer.Option("--folders", help="Images.  [default: simulated ones]")] = None,
    only: Annotated[str, typer.Option(help="Some of: throughput, parity, query.")] = "throughput,parity,query",
    precision: Annotated[str, typer.Option(help="One or several, separated by commas.")] = "auto",
    limit: Annotated[int, typer.Option(min=8, help="Images.")] = 256,
    rows: Annotated[int, typer.Option(min=1000, help="Of the synthetic bank that is queried.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: images/s by stage against a naive script, agreement of embeddings, query time.

    clipfake bench --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
    """
    import tempfile

    from .benchmarks import command, parity, query, throughput
    from .indexer.encoder import UNTRAINED

    name = f"{UNTRAINED}0:{encoder}" if untrained else encoder
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        images: list[Any] = list(folders or ())
        if not images and {"throughput", "parity"} & set(only.split(",")):
            from .indexer.sample import SOURCES, write_sample

            say("writing simulated images")
            images = list(write_sample(Path(made), images_per_source=-(-limit // len(SOURCES))))
        at: dict[str, Any] = {"threads": threads, "device": device}
        suites = {
            "throughput": lambda: throughput.run(images, name, precision=precision, limit=limit, repeats=repeats, **at),
            "parity": lambda: parity.run(images, name, limit=limit, **at),
            "query": lambda: query.run(name, rows=rows, **at),
        }
        for suite in only.split(","):
            if suite not in suites:
                raise typer.BadParameter(f"{suite} is none of {', '.join(suites)}", param_hint="--only")
            say(f"measuring {suite}")
            result[suite] = suites[suite]()
    if out:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        show(result)
    else:
        for line in command.table(result):
            say_out(line)


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Argument(help="Where to put it; it may be deleted afterwards.")] = Path("demo"),
    images_per_source: Annotated[int, typer.Option(min=40, help="Of each of the seven simulated sources.")] = 90,
) -> None:
    """The whole job on a small simulated data set, offline: index, train, query two images.

    clipfake demo demo
    """
    from .indexer.sample import SOURCES, simulated, write_sample
    from .indexer.standin import NOTICE, build_standin

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
        app(args=step, prog_name="clipfake", standalone_mode=False)
    say(f"\ncontact sheet  {sheet}\nreport         {page}\nyour own       clipfake index --folders YOUR/DATA/*")


def open_encoder(
    store: Path, encoder: str | None, *, untrained: bool = False, device: str = "auto", precision: str = "auto"
) -> Encoder:
    """The encoder that was named, else the store's own, else the default."""
    from .indexer.encoder import UNTRAINED, load_encoder
    from .store.errors import NoStore
    from .store.store import Store

    if encoder is None:
        try:
            encoder = Store.open(store).snapshot().space.encoder
        except NoStore:
            encoder = DEFAULT_ENCODER
    if untrained:
        encoder = f"{UNTRAINED}0:{encoder}"
    return load_encoder(encoder, device=device, precision=precision)


def create_store(folder: Path, encoder: Encoder) -> Store:
    from .store.store import Store

    return Store.create(folder, encoder.space)


def notice(encoder: Encoder) -> None:
    """Say so in one line where verdicts mean nothing beyond the sample."""
    from .indexer.encoder import UNTRAINED
    from .indexer.standin import NOTICE, is_standin

    if is_standin(encoder.space.encoder):
        say(NOTICE)
    elif encoder.space.encoder.startswith(UNTRAINED):
        say("The encoder has random weights: good for measuring speed, its verdicts mean nothing.")


def show(result: Any) -> None:
    """A result, on stdout: an object as one line of JSON, anything else as rich draws it."""
    if isinstance(result, dict):
        say_out(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False).print(result)


def say_out(text: str) -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)  # noqa: T201


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
