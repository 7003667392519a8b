"""The console of every command, which escapes names of unknown origin, and plain tables for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..core.escaping import escape_lines

TITLE_WIDTH = 12  # characters in a line of a wrapped column title


class EscapingConsole(Console):
    """Rich's console without markup. Control characters in its content are escaped; its own styles are not content.

    The functions of this package escape names beforehand, line breaks too. What one of them forgets, this escapes.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        stream: Any = sys.stderr if stderr else sys.stdout
        while hasattr(stream, "rich_proxied_file"):  # a stream that escapes would escape the styles too
            stream = stream.rich_proxied_file
        super().__init__(file=stream, highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # control segments are Rich's own, such as the cursor moves of a progress line
            yield segment if segment.control else segment._replace(text=escape_lines(segment.text))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    folded: bool = False,
    words: Collection[str] = (),
) -> Table:
    """A plain table: the first column is aligned left, numbers are aligned right.

    Parameters
    ----------
    folded : wrap the titles of all columns but the first at their word boundaries
    words : columns of text, aligned left too, and wrapped where the table is too wide
    """
    result = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    for i, column in enumerate(columns):
        name = "\n".join(wrap_name(column)) if folded and i else column
        result.add_column(
            name,
            justify="left" if i == 0 or column in words else "right",
            no_wrap=not (folded and i) and column not in words,
            overflow="fold",
        )
    for row in rows:
        result.add_row(*(format_cell(value) for value in row))
    return result


@dataclass(frozen=True)
class WrappedTable:
    """A wide table: columns that do not fit continue below, and no number is ever split."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [
            max(len(line) for line in [*wrap_name(column), *(format_cell(row[i]) for row in self.rows)])
            for i, column in enumerate(self.columns)
        ]
        title = self.title
        for block in column_blocks(widths, options.max_width):
            rows = [[row[i] for i in block] for row in self.rows]
            yield table(title, [self.columns[i] for i in block], rows, folded=True)
            title = ""
            if block[-1] < len(widths) - 1:
                yield Text()


def column_blocks(widths: Sequence[int], available: int, gap: int = 2) -> list[list[int]]:
    """Columns that fit side by side, block by block; the first column is repeated in each block.

    >>> column_blocks([9, 5, 5, 5], 80), column_blocks([9, 5, 5, 5], 23)
    ([[0, 1, 2, 3]], [[0, 1, 2], [0, 3]])
    """
    blocks, left = [[0]], available - widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if gap + width > left and len(blocks[-1]) > 1:
            blocks.append([0])
            left = available - widths[0]
        blocks[-1].append(i)
        left -= gap + width
    return blocks


def wrap_name(name: str) -> list[str]:
    """A long name split into lines at its underscores, hyphens and spaces.

    >>> wrap_name("imagenet_sample"), wrap_name("stable_diffusion_xl"), wrap_name("sd14")
    (['imagenet_', 'sample'], ['stable_', 'diffusion_xl'], ['sd14'])
    """
    lines = [""]
    for word in re.findall(r"[^_\- ]*[_\- ]?", name):
        if lines[-1] and len(lines[-1]) + len(word) > TITLE_WIDTH:
            lines.append("")
        lines[-1] += word
    return [line.rstrip(" ") for line in lines]


def format_cell(value: Any) -> str:
    """A value as a table shows it.

    >>> format_cell(None), format_cell(0.25), format_cell(12_000), format_cell("sd14")
    ('–', '0.250', '12,000', 'sd14')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
