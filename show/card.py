"""A verdict as a card for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..detector.verdict import Neighbor, Refusal, Verdict

# as on the page and in the figures: blue and orange are apart for every eye, and every colour is named in words too
COLOURS = {"real": "#2f86d0", "fake": "#d9622b", "unsure": "#b58a00"}
HALF = 8.0  # log-likelihood ratio at the ends of the scale


def card(verdict: Verdict) -> RenderableType:
    """Everything there is to say of one image."""
    colour = COLOURS[verdict.verdict]
    head = Text(verdict.verdict.upper(), style=f"bold {colour}")
    if verdict.generator:
        head.append(
            f"   probably made by {verdict.generator}"
            if verdict.generator != "unknown"
            else "   by an unknown generator",
            style="default",
        )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    where = "" if verdict.prior == 0.5 else f" where {verdict.prior:.0%} are fake"
    chance = f"P(fake) {verdict.probability:.0%}{where}"
    facts.add_row("score", f"{verdict.score:+.2f}  {scale(verdict.score)}  {chance}")
    facts.add_row("classifier", f"{verdict.signals['svm']:+.2f}  {scale(verdict.signals['svm'])}")
    facts.add_row("neighbours", f"{verdict.signals['neighbors']:+.2f}  {scale(verdict.signals['neighbors'])}")
    facts.add_row("likeness", f"nearer to a known image than {verdict.percentile:.0f} % of known images are")
    facts.add_row("because", "; ".join(verdict.reasons))
    if verdict.known:
        facts.add_row("known", f"this very file is stored as {verdict.known} (and did not testify)")
    for i, change in enumerate(verdict.changes):
        facts.add_row("" if i else "would change", f"{change.what}: {change.verdict} ({change.score:+.2f})")
    for i, view in enumerate(verdict.views):
        facts.add_row("" if i else "copies", f"{view.what}: {view.verdict} ({view.score:+.2f})")
    body = Group(head, facts, Text(), witnesses(verdict.neighbors))
    return Panel(
        body, title=Text(verdict.image, overflow="ellipsis"), title_align="left", border_style=colour, padding=(0, 1)
    )


def witnesses(neighbors: dict[str, tuple[Neighbor, ...]]) -> Table:
    """The nearest real and the nearest fake rows, side by side by rank."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("real", "fake"):
        table.add_column(style=COLOURS[name], no_wrap=True, min_width=5)
        table.add_column(f"nearest {name}", no_wrap=True, min_width=12, overflow="ellipsis")
        table.add_column("image", overflow="ellipsis", no_wrap=True, style="dim")
    real, fake = neighbors["real"], neighbors["fake"]
    for rank in range(max(len(real), len(fake))):
        table.add_row(*_cells(real, rank), *_cells(fake, rank))
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
    ('real ●━━━━━━━━━━┿━━━━━━━━━━━ fake', 'real ━━━━━━━━━━━●━━━━━━━━━━━ fake')
    """
    width = 11
    place = round(max(-1.0, min(1.0, score / HALF)) * width) + width
    line = ["━"] * (2 * width + 1)
    line[width] = "┿"
    line[place] = "●"
    return f"real {''.join(line)} fake"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, folded: bool = False) -> Table:
    """A plain table: the first column left, numbers right; long titles of columns may be folded."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=not (folded and i), overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


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
        values: list[Any] = [answer.image, "", "", "", "", "", "", answer.error]
    else:
        near = [found[0].key if found else "" for found in (answer.neighbors["real"], answer.neighbors["fake"])]
        numbers = [f"{answer.score:.4f}", f"{answer.probability:.4f}"]
        values = [answer.image, answer.verdict, *numbers, answer.generator, *near, ""]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
