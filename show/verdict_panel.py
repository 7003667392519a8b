"""A verdict as a card for the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..detector.verdict import Neighbor, Refusal, Verdict
from .phrasing import SHAPES, STRONGEST, chance, familiar, kept, likelier, maker

# as on the page and in the figures: blue and orange are apart for every eye, and every colour is named in words too
COLOURS = {"real": "#2f86d0", "fake": "#d9622b", "unsure": "#8e99a5"}


NARROW = 12  # letters in a line of a column's folded title


@dataclass(frozen=True)
class VerdictPanel:
    """Everything there is to say of one image: the answer and how sure it is first, then why, then the witnesses."""

    verdict: Verdict

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        verdict, colour = self.verdict, COLOURS[self.verdict.verdict]
        head = Text(f"{SHAPES[verdict.verdict]} {verdict.verdict.upper()}", style=f"bold {colour}")
        head.append("   ").append(", ".join(filter(None, (chance(verdict), maker(verdict)))), style="default")
        body = Group(head, facts(verdict), Text(), witnesses(verdict.neighbors))
        title = Text(ending(verdict.image, options.max_width - 6))
        yield Panel(body, title=title, title_align="left", border_style=colour, padding=(0, 1))


def facts(verdict: Verdict) -> Table:
    """Why, each signal by itself and both together, and what would be said otherwise."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column()
    made.add_row("because", "; ".join(verdict.reasons))
    if verdict.stored:
        made.add_row("known", f"{kept(verdict)}; it did not testify")
    signals = {"classifier": verdict.signals["svm"], "neighbours": verdict.signals["neighbors"], "score": verdict.score}
    for name, value in signals.items():
        made.add_row(name, f"{value:+.2f}  {scale(value)}  {likelier(value)}")
    made.add_row("familiar", familiar(verdict.percentile))
    for i, change in enumerate(verdict.changes):
        made.add_row("" if i else "what if", f"{change.what}: {change.verdict} ({change.score:+.2f})")
    for i, view in enumerate(verdict.views):
        made.add_row("" if i else "copies", f"{view.what}: {view.verdict} ({view.score:+.2f})")
    return made


def ending(text: str, width: int) -> str:
    """The end of a text that is too long: of a path, the end is what tells it from others.

    >>> ending("photos/2024/a.jpg", 10), ending("a.jpg", 10)
    ('…024/a.jpg', 'a.jpg')
    """
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"


def witnesses(neighbors: dict[str, tuple[Neighbor, ...]]) -> Table:
    """The nearest real and the nearest fake rows, side by side by rank."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("real", "fake"):
        if table.columns:
            table.add_column(width=1)  # between the two
        table.add_column(SHAPES[name], style=COLOURS[name], header_style=COLOURS[name], no_wrap=True, min_width=5)
        table.add_column(f"nearest {name}", no_wrap=True, min_width=12, overflow="ellipsis")
        table.add_column("image", overflow="ellipsis", no_wrap=True, style="dim")
    real, fake = neighbors["real"], neighbors["fake"]
    for rank in range(max(len(real), len(fake))):
        table.add_row(*_cells(real, rank), "", *_cells(fake, rank))
    return table


def _cells(found: Sequence[Neighbor], rank: int) -> tuple[str, str, str]:
    if rank >= len(found):
        return "", "", ""
    neighbor = found[rank]
    inside = neighbor.key.removeprefix(f"{neighbor.source}/")
    return f"{neighbor.similarity:.3f}", neighbor.source, inside.rsplit("/", 1)[-1]


def scale(score: float) -> str:
    """Where a score lies between real and fake, drawn.

    >>> scale(-8.0), scale(0.0)
    ('real ●━━━━━━━┿━━━━━━━━ fake', 'real ━━━━━━━━●━━━━━━━━ fake')
    """
    width = 8
    place = round(max(-1.0, min(1.0, score / STRONGEST)) * width) + width
    line = ["━"] * (2 * width + 1)
    line[width] = "┿"
    line[place] = "●"
    return f"real {''.join(line)} fake"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    folded: bool = False,
    words: Collection[str] = (),
) -> Table:
    """A plain table: the first column and those of words left, numbers right; long titles of columns may be folded."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        name = "\n".join(parts(column)) if folded and i else column
        made.add_column(
            name, justify="left" if i == 0 or column in words else "right", no_wrap=not (folded and i), overflow="fold"
        )
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


@dataclass(frozen=True)
class SideBySide:
    """A wide table: columns for which there is no room go on below, and no number is ever broken."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        every = [
            max(len(part) for part in [*parts(column), *(_cell(row[i]) for row in self.rows)])
            for i, column in enumerate(self.columns)
        ]
        title = self.title
        for block in side_by_side(every, options.max_width):
            shown = [[row[i] for i in block] for row in self.rows]
            yield table(title, [self.columns[i] for i in block], shown, folded=True)
            title = ""
            if block[-1] < len(every) - 1:
                yield Text()


def side_by_side(widths: Sequence[int], room: int, between: int = 2) -> list[list[int]]:
    """Which columns stand beside each other, the first one always among them.

    >>> side_by_side([9, 5, 5, 5], 80), side_by_side([9, 5, 5, 5], 23)
    ([[0, 1, 2, 3]], [[0, 1, 2], [0, 3]])
    """
    blocks, left = [[0]], room - widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if between + width > left and len(blocks[-1]) > 1:
            blocks.append([0])
            left = room - widths[0]
        blocks[-1].append(i)
        left -= between + width
    return blocks


def parts(name: str) -> list[str]:
    """A long name in lines, broken where its words end.

    >>> parts("imagenet_sample"), parts("stable_diffusion_xl"), parts("sd14")
    (['imagenet_', 'sample'], ['stable_', 'diffusion_xl'], ['sd14'])
    """
    lines = [""]
    for word in re.findall(r"[^_\- ]*[_\- ]?", name):
        if lines[-1] and len(lines[-1]) + len(word) > NARROW:
            lines.append("")
        lines[-1] += word
    return [line.rstrip(" ") for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


COLUMNS = ("image", "verdict", "score", "probability", "generator", "nearest_real", "nearest_fake", "error")


def csv_header() -> str:
    return ",".join(COLUMNS)


def csv_line(answer: Verdict | Refusal) -> str:
    """One image as a line of CSV; the keys of its nearest rows, or the reason why it could not be judged."""
    if isinstance(answer, Refusal):
        values: list[Any] = [_inert(answer.image), "", "", "", "", "", "", _inert(answer.error)]
    else:
        near = [_inert(found[0].key) if found else "" for found in (answer.neighbors["real"], answer.neighbors["fake"])]
        numbers = [f"{answer.score:.4f}", f"{answer.probability:.4f}"]
        values = [_inert(answer.image), answer.verdict, *numbers, _inert(answer.generator), *near, ""]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _inert(name: str) -> str:
    """A name as a spreadsheet shows it: one that begins like a formula gets a quote before it, and is not run.

    >>> _inert("=1+1.png"), _inert("a=1.png")
    ("'=1+1.png", 'a=1.png')
    """
    return f"'{name}" if name[:1] in tuple("=+-@\t\r") else name
