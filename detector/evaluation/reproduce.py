"""Reproduction of the source paper: the figures of its ten tables, and the runs that give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ...errors import NotEnoughRows
from ...store.filter import Filter
from ...store.records import FAKE, REAL
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..head import TRIPLET_SVM, Head
from ..metrics import Metrics, measure
from ..projection import FUSIONS
from ..split import PARTS
from ..training.train import TrainOptions, decision_values, make_split, train
from ..training.triplet import TripletOptions
from ..vocabulary import MODES, Mode

Backbone = Literal["b32", "b16"]
BACKBONES: dict[Backbone, str] = {"b32": "ViT-B/32", "b16": "ViT-B/16"}


@dataclass(frozen=True)
class PaperData:
    """A data set of the paper: folders of ArtiFact, and the number of rows used."""

    name: str
    sources: tuple[str, ...]
    rows: int  # used by the paper, half of them real


PAPER_DATA = {
    "cycle_gan": PaperData("CycleGAN", ("cycle_gan",), 15_210),
    "pro_gan": PaperData("ProGAN", ("pro_gan",), 40_000),
    "combined": PaperData("combined", ("cycle_gan", "pro_gan"), 55_210),
}
SOURCES = PAPER_DATA["combined"].sources


@dataclass(frozen=True)
class PaperFigures:
    """One column of a table, in per cent: (real, fake), or the mean of both classes alone."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    accuracy: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    number: int
    backbone: Backbone
    kind: str
    data: str
    parts: dict[str, PaperFigures]

    @property
    def cell(self) -> str:
        """Name of the run that reproduces it."""
        return f"{self.backbone}-{self.kind}-{self.data}"


def _means(precision: Sequence[float], recall: Sequence[float], f1: Sequence[float]) -> dict[str, PaperFigures]:
    """The three columns of tables 5 to 10: means of both classes, without accuracy."""
    per_part = zip(PARTS, precision, recall, f1, strict=True)
    return {part: PaperFigures((p,), (r,), (f,)) for part, p, r, f in per_part}


# The paper calls the heads of tables 8 to 10 "product", but describes image, text and their product, each of 128
# dimensions, concatenated and projected back to 128, which is `triple` here.
PAPER_TABLES = (
    PaperTable(
        1, "b32", "linear", "cycle_gan", {"train": PaperFigures((95.79, 94.87), (94.81, 95.83), (95.30, 95.35), 95.3)}
    ),
    PaperTable(
        2, "b32", "linear", "cycle_gan", {"test": PaperFigures((94.43, 93.62), (93.56, 94.48), (93.99, 94.04), 94.0)}
    ),
    PaperTable(
        3, "b32", "linear", "pro_gan", {"train": PaperFigures((92.93, 93.11), (93.13, 92.91), (93.03, 93.01), 93.02)}
    ),
    PaperTable(
        4, "b32", "linear", "pro_gan", {"test": PaperFigures((91.62, 92.08), (92.13, 91.57), (91.87, 91.83), 91.85)}
    ),
    PaperTable(
        5, "b16", "sum", "cycle_gan", _means((94.61, 93.68, 93.50), (94.60, 93.62, 93.49), (94.60, 93.62, 93.49))
    ),
    PaperTable(6, "b16", "sum", "pro_gan", _means((92.99, 92.25, 92.62), (92.98, 92.25, 92.61), (92.98, 92.25, 92.61))),
    PaperTable(
        7, "b16", "sum", "combined", _means((91.46, 91.65, 91.25), (91.46, 91.65, 91.25), (91.46, 91.65, 91.25))
    ),
    PaperTable(
        8, "b16", "triple", "cycle_gan", _means((95.49, 95.39, 95.41), (95.48, 95.33, 95.40), (95.48, 95.33, 95.40))
    ),
    PaperTable(
        9, "b16", "triple", "pro_gan", _means((90.83, 89.95, 90.49), (90.82, 89.95, 90.49), (90.82, 89.95, 90.49))
    ),
    PaperTable(
        10, "b16", "triple", "combined", _means((90.76, 91.07, 90.57), (90.75, 91.07, 90.57), (90.75, 91.07, 90.57))
    ),
)


@dataclass(frozen=True)
class PaperRun:
    """A run: one head of an encoder, a projection and a data set, tested on this and on the other data sets."""

    backbone: Backbone
    kind: str
    data: str

    @property
    def name(self) -> str:
        return f"{self.backbone}-{self.kind}-{self.data}"

    @property
    def tables(self) -> tuple[PaperTable, ...]:
        """Tables of the paper that the run reproduces; () for a run that is not in the paper."""
        return tuple(table for table in PAPER_TABLES if table.cell == self.name)


KINDS: dict[Backbone, tuple[str, ...]] = {"b32": ("linear",), "b16": ("linear", *FUSIONS)}
PAPER_RUNS = tuple(
    PaperRun(backbone, kind, data) for backbone, kinds in KINDS.items() for kind in kinds for data in PAPER_DATA
)


@dataclass(frozen=True)
class PaperOptions:
    """Options of the paper's runs; the defaults are the paper's."""

    epochs: int = 20
    seed: int = 0
    baselines: tuple[str, ...] = ("majority", "category_only", "linear_probe")

    def training(self, kind: str, data: str) -> TrainOptions:
        """Training options for a kind of projection and a data set."""
        return TrainOptions(
            kind,
            TripletOptions(epochs=self.epochs),
            sources=PAPER_DATA[data].sources,
            recipe="paper-text" if kind in FUSIONS else "paper",  # the paper's two pipelines round differently
            seed=self.seed,
            baselines=self.baselines,
            classifier=TRIPLET_SVM,
        )


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run, as JSON types, since it is saved in a file of its own."""

    cell: str
    inputs: dict[str, Any]  # everything it depends on, see `run_inputs`; if this changes, the run is repeated
    rows: dict[str, int]  # number of rows: real, fake, train, validation, test
    parts: dict[
        str, Any
    ]  # train, validation, test -> metrics; of text heads with the stored categories, as in the paper
    modes: dict[str, Any]  # for text heads: mode -> metrics of the test rows
    elsewhere: dict[str, Any]  # other data set -> metrics of its test rows
    baselines: dict[str, Any]
    sentences: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Convert to the JSON of the saved file, in which the inputs are named "asked"."""
        fields = asdict(self)
        return {"cell": fields.pop("cell"), "asked": fields.pop("inputs"), **fields}


def run_inputs(snapshot: Snapshot, options: PaperOptions) -> dict[str, Any]:
    """Return everything that the outcome of a run depends on."""
    parts = [[part.name, part.header, part.deleted_digest] for part in snapshot.manifest.parts]
    return {"space": snapshot.space.to_dict(), "rows": parts, "options": {**asdict(options), "baselines": None}}


def missing_data(snapshot: Snapshot, cell: PaperRun) -> str:
    """Why a run is impossible on these rows, "" if it is possible."""
    stored = set(snapshot.column("sources").tolist())
    if missing := [source for source in PAPER_DATA[cell.data].sources if source not in stored]:
        return f"no rows of {' and '.join(missing)}; add that folder of ArtiFact"
    of_data = Filter(source=PAPER_DATA[cell.data].sources).mask(snapshot)
    if not {REAL, FAKE} <= set(snapshot.column("labels")[of_data].tolist()):
        return f"{PAPER_DATA[cell.data].name} has rows of one class only"
    if cell.kind in FUSIONS and not snapshot.texts:
        return "its encoder has no text side"
    return ""


def run(
    snapshot: Snapshot,
    cell: PaperRun,
    options: PaperOptions = PaperOptions(),
    on_progress: Callable[[str], None] | None = None,
) -> RunOutcome:
    """Train the head of a run, then measure it on its own rows and on the test rows of the other data sets.

    Raises
    ------
    NotEnoughRows
        The run is impossible on these rows, see `missing_data`.
    """
    if why := missing_data(snapshot, cell):
        raise NotEnoughRows(f"{cell.name}: {why}")
    training = options.training(cell.kind, cell.data)
    trained = train(snapshot, training, on_progress)
    head, (_, parts) = trained.head, make_split(snapshot, training)
    mode: Mode = "given" if head.projection.reads_text else "zero-shot"
    labels = snapshot.column("labels")
    metrics = {part: evaluate_head(head, snapshot, parts[part], mode).to_dict() for part in PARTS}
    modes: dict[str, Any] = {}
    if head.projection.reads_text:
        modes = {each: evaluate_head(head, snapshot, parts["test"], each).to_dict() for each in MODES}
    elsewhere = {}
    for other in PAPER_DATA:
        foreign = not set(PAPER_DATA[other].sources) & set(PAPER_DATA[cell.data].sources)
        if foreign and not missing_data(snapshot, PaperRun(cell.backbone, cell.kind, other)):
            tested = make_split(snapshot, options.training(cell.kind, other))[1]["test"]
            elsewhere[other] = evaluate_head(head, snapshot, tested).to_dict()
    used = np.concatenate([parts[part] for part in PARTS])
    counts = {name: int((labels[used] == label).sum()) for name, label in (("real", REAL), ("fake", FAKE))}
    return RunOutcome(
        cell.name,
        run_inputs(snapshot, options),
        counts | {part: len(parts[part]) for part in PARTS},
        metrics,
        modes,
        elsewhere,
        {name: baseline.to_dict() for name, baseline in trained.baselines.items()},
        trained.sentences,
    )


def evaluate_head(head: Head, snapshot: Snapshot, positions: Positions, mode: Mode = "zero-shot") -> Metrics:
    """Measure a head on the rows at some positions; `mode` says where the categories for a text head come from."""
    return measure(snapshot.column("labels")[positions], decision_values(head, snapshot, positions, mode))
