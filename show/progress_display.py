"""What a command shows while it works, and its summary when it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .store_tables import count
from .verdict_panel import table

SKIPPED_SHOWN = 20  # lines
SAME_SHOWN = 3  # keys of one reason
UNLABELLED = (
    "No head learns from them, and no verdict rests on them. A folder named real or fake says what they are, or a "
    "metadata.csv with a column target or label."
)
NARROW = 110  # columns of a terminal below which the progress line uses fewer words


@contextmanager
def progress_of(count: Callable[[], int | None]) -> Iterator[Callable[[Any], None] | None]:
    """A progress line on stderr for an indexing run, or None where stderr is no terminal.

    `count` says about how many images there are, None for nobody knows; it may take long and runs beside the work.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    narrow = console.width < NARROW
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[busy]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]}", style="yellow"),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("indexing", total=None, rate="", busy="", bad="")

        def fill() -> None:
            try:
                bar.update(task, total=count())
            except Exception:  # noqa: BLE001  the run itself will say what is wrong
                return

        threading.Thread(target=fill, daemon=True).start()

        def show_report(report: Any) -> None:
            done = report.added + report.known + report.replaced + len(report.skipped)
            bad = f"{len(report.skipped):,} skipped" if report.skipped else ""
            now, average = f"{report.images_per_second_now:,.0f}", f"{report.images_per_second:,.0f}"
            rate = f"{now}/s, {average} mean" if narrow else f"{now} images/s now, {average} on average"
            rate = rate if report.done else ""
            encode = report.stages.get("encode")
            busy = f"encoder {encode.share(report.seconds):.0%}{'' if narrow else ' busy'}" if encode else ""
            doing = "stopping after what is under way" if report.interrupted else "indexing"
            bar.update(task, description=doing, completed=done, rate=rate, busy=busy, bad=bad)

        yield show_report


@contextmanager
def status_of(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, silent where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda doing: None
        return
    with console.status(what) as line:
        yield lambda doing: line.update(f"{what}: {doing}")


def index_summary(report: dict[str, Any], *, planned: bool = False) -> RenderableType:
    """Counts by source and label, throughput, and what was skipped and why."""
    by_source: dict[str, dict[str, int]] = {}
    for row in report["sources"]:
        by_source.setdefault(row["source"], {})[row["label"]] = row["rows"]
    labels = ("real", "fake", "unknown")
    rows: list[list[Any]] = [
        [source, *(counts.get(label, 0) for label in labels)] for source, counts in sorted(by_source.items())
    ]
    rows.append(["in all", *(sum(row[i] for row in rows) for i in (1, 2, 3))])
    title = "found" if planned else "listed"  # planned: what the store has already is not taken off
    parts: list[RenderableType] = [table(title, ["source", *labels], rows)]
    if not planned:
        words = {"added": "added", "known": "known already", "replaced": "replaced", "dropped": "dropped"}
        totals = ", ".join(
            f"{report[name]:,} {word}" for name, word in words.items() if report[name] or name == "added"
        )
        parts.append(Text(f"\n{totals} in {report['seconds']:.1f} s"))
        if report["images_per_second"]:
            stages = ", ".join(f"{name} {stage['busy']:.0%}" for name, stage in report["stages"].items())
            limit = f", limited by {report['limit']} (busy: {stages})"
            parts.append(Text(f"{report['images_per_second']:,.1f} images/s{limit}"))
        parts += [Text(sentence) for sentence in decoded(report)]
    if unknown := rows[-1][3]:
        parts.append(Text(f"\n{count(unknown, 'image')} without a label: {_few([r[0] for r in rows[:-1] if r[3]])}"))
        parts.append(Text(UNLABELLED))
    if skipped := report["skipped"]:
        parts.append(Text(f"\n{len(skipped):,} skipped:", style="yellow"))
        parts += [Text(line) for line in by_reason(skipped)]
    return Group(*parts)


def decoded(report: dict[str, Any]) -> Iterator[str]:
    """Who decoded how many images, where it was not the cores alone, and why a decoder was not used."""
    by = [f"{images:,} by {name}" for name, images in report["decoded_by"].items() if images]
    if by and len(report["decoded_by"]) > 1:
        yield f"decoded {', '.join(by)}"
    if report["decoder_unused"]:
        yield report["decoder_unused"]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SAME_SHOWN:,} more" if len(names) > SAME_SHOWN else ""
    return ", ".join(names[:SAME_SHOWN]) + more


def by_reason(skipped: list[dict[str, str]]) -> list[str]:
    """What was skipped as lines, those with one reason together: a thousand missing files hide no broken one.

    >>> by_reason([{"key": "a.jpg", "reason": "empty file"}])
    ['  a.jpg: empty file']
    >>> by_reason([{"key": f"{i}.jpg", "reason": "empty file"} for i in range(1200)])
    ['  1,200 times: empty file', '    0.jpg', '    1.jpg', '    2.jpg', '    … and 1,197 more (--json lists all)']
    """
    keys: dict[str, list[str]] = {}
    for row in skipped:
        keys.setdefault(row["reason"], []).append(row["key"])
    lines = []
    for reason, of in sorted(keys.items(), key=lambda one: -len(one[1])):
        if len(of) <= SAME_SHOWN:
            lines += [f"  {key}: {reason}" for key in of]
            continue
        lines += [f"  {len(of):,} times: {reason}", *(f"    {key}" for key in of[:SAME_SHOWN])]
        lines.append(f"    … and {len(of) - SAME_SHOWN:,} more (--json lists all)")
    if len(lines) > SKIPPED_SHOWN:
        lines = [*lines[:SKIPPED_SHOWN], "  … and more (--json lists all)"]
    return lines


def class_table(report: dict[str, Any]) -> RenderableType:
    """Rows of each raw target and of each label, source by source: what binarising does to a data set."""
    targets = sorted({int(target) for row in report["distribution"] for target in row["targets"]})
    labels = ("real", "fake", "unknown")
    rows = [
        [row["source"], *(row["targets"].get(str(t), 0) for t in targets), *(row["labels"][label] for label in labels)]
        for row in report["distribution"]
    ]
    rows.append(["in all", *(sum(row[i] for row in rows) for i in range(1, len(targets) + len(labels) + 1))])
    titles = ["none" if t < 0 else str(t) for t in targets]
    return table("rows by target as the data set says, then by label", ["source", *titles, *labels], rows)
