"""A verdict on the terminal: a panel for a person, a line of CSV for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..core.escaping import csv_text, escape_all
from ..detector.verdict import Neighbor, Refusal, Verdict
from .phrasing import (
    STRONGEST,
    describe_familiarity,
    describe_likelihood,
    describe_map,
    describe_ratio,
    describe_source,
    named_signals,
)
from .verdict_style import VERDICT_STYLES


@dataclass(frozen=True)
class VerdictPanel:
    """A verdict for a person: the answer and its probability first, then the reasons, then the nearest images."""

    verdict: Verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        verdict, style = escape_all(self.verdict), VERDICT_STYLES[self.verdict.verdict]
        head = Text(f"{style.sign} {verdict.verdict.upper()}", style=f"bold {style.terminal_color}")
        answer = ", ".join(filter(None, (describe_likelihood(verdict), describe_source(verdict))))
        head.append("   ").append(verdict.copy or answer, style="default")
        second = [Text(answer)] if verdict.copy else []
        body = Group(head, *second, reasons_table(verdict), Text(), neighbors_table(verdict.neighbors))
        title = Text(shorten_start(verdict.image, options.max_width - 6))
        yield Panel(body, title=title, title_align="left", border_style=style.terminal_color, padding=(0, 1))


def reasons_table(verdict: Verdict) -> Table:
    """Table of the reasons, each signal alone and both combined, and what would change the verdict."""
    result = Table.grid(padding=(0, 2))
    result.add_column(style="dim", no_wrap=True)
    result.add_column()
    result.add_row("reasons", "; ".join(verdict.reasons))
    signals = named_signals(verdict)
    for name, value in signals.items():
        result.add_row(name, f"{value:+.2f}  {scale(value)}  {describe_ratio(value)}")
    result.add_row("familiarity", describe_familiarity(verdict.percentile))
    for i, change in enumerate(verdict.changes):
        result.add_row("" if i else "what if", f"{change.what}: {change.verdict} ({change.score:+.2f})")
    for i, view in enumerate(verdict.views):
        result.add_row("" if i else "degraded", f"{view.what}: {view.verdict} ({view.score:+.2f})")
    if verdict.map:
        result.add_row(
            "where", f"{describe_map(verdict.map)}. {verdict.map.note}" if verdict.map.shown else verdict.map.note
        )
    return result


def shorten_start(text: str, width: int) -> str:
    """Shorten a text at its start, since paths differ most at their end.

    >>> shorten_start("photos/2024/a.jpg", 10), shorten_start("a.jpg", 10)
    ('…024/a.jpg', 'a.jpg')
    """
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"


def neighbors_table(neighbors: dict[str, tuple[Neighbor, ...]]) -> Table:
    """The nearest real and the nearest fake rows side by side, by rank."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("real", "fake"):
        if result.columns:
            result.add_column(width=1)  # space between the two classes
        style = VERDICT_STYLES[name]
        color = style.terminal_color
        result.add_column(style.sign, style=color, header_style=color, no_wrap=True, min_width=5)
        result.add_column(f"nearest {name}", no_wrap=True, min_width=12, overflow="ellipsis")
        result.add_column("image", overflow="ellipsis", no_wrap=True, style="dim")
    real, fake = neighbors["real"], neighbors["fake"]
    for rank in range(max(len(real), len(fake))):
        result.add_row(*_neighbor_cells(real, rank), "", *_neighbor_cells(fake, rank))
    return result


def _neighbor_cells(neighbors: Sequence[Neighbor], rank: int) -> tuple[str, str, str]:
    if rank >= len(neighbors):
        return "", "", ""
    neighbor = neighbors[rank]
    inside = neighbor.key.removeprefix(f"{neighbor.source}/")
    return f"{neighbor.similarity:.3f}", neighbor.source, inside.rsplit("/", 1)[-1]


def scale(score: float) -> str:
    """Draw a log-likelihood ratio as a mark on a line from real to fake.

    >>> scale(-8.0), scale(0.0)
    ('real ●━━━━━━━┿━━━━━━━━ fake', 'real ━━━━━━━━●━━━━━━━━ fake')
    """
    width = 8
    position = round(max(-1.0, min(1.0, score / STRONGEST)) * width) + width
    line = ["━"] * (2 * width + 1)
    line[width] = "┿"
    line[position] = "●"
    return f"real {''.join(line)} fake"


CSV_COLUMNS = (
    "image",
    "verdict",
    "score",
    "probability",
    "generator",
    "nearest_real",
    "nearest_fake",
    "error",
    "copy_of",
)


def csv_header() -> str:
    """The column names of `csv_line`."""
    return ",".join(CSV_COLUMNS)


def csv_line(answer: Verdict | Refusal) -> str:
    """Format one answer as a line of CSV: the verdict with the keys of its nearest rows, or the error."""
    if isinstance(answer, Refusal):
        return csv_text([[answer.image, "", None, None, "", "", "", answer.error, ""]]).rstrip("\n")
    nearest = [of_class[0].key if of_class else "" for of_class in map(answer.neighbors.get, ("real", "fake"))]
    numbers = [Decimal(f"{value:.4f}") for value in (answer.score, answer.probability)]
    return csv_text([[answer.image, answer.verdict, *numbers, answer.generator, *nearest, "", answer.known]]).rstrip(
        "\n"
    )
