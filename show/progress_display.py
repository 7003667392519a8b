"""Progress lines of a running command, and the summary of an indexing run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..core.escaping import escape, escape_all
from .store_tables import count
from .tables import EscapingConsole, table

MAX_SKIPPED_LINES = 20
MAX_KEYS = 3  # per reason
UNLABELLED = (
    "They are used neither for training nor as evidence. To label images, put them in a folder named real or fake, add "
    "a metadata.csv with a column target or label, or name the column of a table with --columns label=COLUMN."
)
KEPT = (
    "kept although the listing has none; to forget them, delete these rows (`Store.delete` in Python) and index again"
)
NARROW = 110  # terminal columns below which the progress line is abbreviated


@contextmanager
def index_progress(count: Callable[[], int | None]) -> Iterator[Callable[[Any], None] | None]:
    """A progress line on stderr for an indexing run; yields its callback, or None if stderr is not a terminal.

    Parameters
    ----------
    count : estimates the number of images, None if unknown; it may be slow and runs in a thread of its own
    """
    console = EscapingConsole(stderr=True)
    if not console.is_terminal:
        yield None
        return
    narrow = console.width < NARROW
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[busy]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]}", style="yellow", markup=False),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("indexing", total=None, rate="", busy="", bad="")

        def fill() -> None:
            try:
                bar.update(task, total=count())
            except Exception:  # noqa: BLE001  the run itself reports the error
                return

        threading.Thread(target=fill, daemon=True).start()

        def on_progress(report: Any) -> None:
            done = report.added + report.known + report.replaced + report.relabelled + len(report.skipped)
            bad = f"{len(report.skipped):,} skipped" if report.skipped else ""
            now, average = f"{report.images_per_second_now:,.0f}", f"{report.images_per_second:,.0f}"
            rate = f"{now}/s, {average} mean" if narrow else f"{now} images/s now, {average} on average"
            rate = rate if report.done else ""
            encode = report.stages.get("encode")
            busy = f"encoder {encode.share(report.seconds):.0%}{'' if narrow else ' busy'}" if encode else ""
            description = "stopping after the current batches" if report.interrupted else "indexing"
            bar.update(task, description=description, completed=done, rate=rate, busy=busy, bad=bad)

        yield on_progress


@contextmanager
def status_line(title: str) -> Iterator[Callable[[str], None]]:
    """A status line on stderr; yields a callback that sets its text. Silent if stderr is not a terminal."""
    console = EscapingConsole(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    with console.status(Text(title)) as line:  # a string would be read as markup
        yield lambda step: line.update(Text(escape(f"{title}: {step}")))


def index_summary(report: dict[str, Any], *, planned: bool = False) -> RenderableType:
    """Counts by source and label, throughput, and the skipped images with their reasons."""
    report = escape_all(report)
    by_source: dict[str, dict[str, int]] = {}
    for row in report["sources"]:
        by_source.setdefault(row["source"], {})[row["label"]] = row["rows"]
    labels = ("real", "fake", "unknown")
    rows: list[list[Any]] = [
        [source, *(counts.get(label, 0) for label in labels)] for source, counts in sorted(by_source.items())
    ]
    rows.append(["total", *(sum(row[i] for row in rows) for i in (1, 2, 3))])
    title = "images found" if planned else "images listed"  # a plan includes images that the store has already
    columns = ["source", *labels]
    if planned:
        columns.append("generator")
        generators = {row["source"]: row["generators"] for row in report["sources"] if row["generators"]}
        for row in rows:
            row.append(_first_names(generators.get(row[0], [])))
    parts: list[RenderableType] = [table(title, columns, rows)]
    if not planned:
        states = {"added": "added", "known": "already stored", "replaced": "replaced"}
        states |= {"relabelled": "relabelled", "dropped": "dropped"}
        counts = ", ".join(
            f"{report[name]:,} {word}" for name, word in states.items() if report[name] or name == "added"
        )
        parts.append(Text(f"\n{counts} in {report['seconds']:.1f} s"))
        if kept := report["labels_kept"]:
            parts.append(Text(f"{count(kept, 'stored label or category', 'stored labels or categories')} {KEPT}"))
        if report["images_per_second"]:
            stages = ", ".join(f"{name} {stage['busy']:.0%}" for name, stage in report["stages"].items())
            limit = f", limited by {report['limit']} (busy: {stages})"
            parts.append(Text(f"{report['images_per_second']:,.1f} images/s{limit}"))
        parts += [Text(sentence) for sentence in describe_decoders(report)]
    if unknown := rows[-1][3]:
        parts.append(
            Text(f"\n{count(unknown, 'image')} without a label: {_first_names([r[0] for r in rows[:-1] if r[3]])}")
        )
        parts.append(Text(UNLABELLED))
    if skipped := report["skipped"]:
        parts.append(Text(f"\n{len(skipped):,} skipped:", style="yellow"))
        parts += [Text(line) for line in group_skipped(skipped)]
    parts += [Text(line, style="yellow") for line in describe_passed_over(report["passed_over"])]
    return Group(*parts)


def describe_passed_over(files: list[dict[str, Any]]) -> list[str]:
    """Lines for the files that are not indexed, by reason.

    >>> describe_passed_over([{"reason": "unfinished downloads", "files": 2, "example": "d/a.jpg.part"}])
    ['', 'passed over (2): unfinished downloads, as d/a.jpg.part']
    """
    lines = [f"passed over ({row['files']:,}): {row['reason']}, as {row['example']}" for row in files]
    return ["", *lines] if lines else []


def describe_decoders(report: dict[str, Any]) -> Iterator[str]:
    """Number of images by decoder, where there were several, and why a decoder was not used."""
    by = [f"{images:,} by {name}" for name, images in report["decoded_by"].items() if images]
    if by and len(report["decoded_by"]) > 1:
        yield f"decoded {', '.join(by)}"
    if report["decoder_unused"]:
        yield report["decoder_unused"]


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_KEYS:,} more" if len(names) > MAX_KEYS else ""
    return ", ".join(names[:MAX_KEYS]) + more


def group_skipped(skipped: list[dict[str, str]]) -> list[str]:
    """Lines for the skipped images, grouped by reason so that many missing files do not hide a corrupt one.

    >>> group_skipped([{"key": "a.jpg", "reason": "empty file"}])
    ['  a.jpg: empty file']
    >>> group_skipped([{"key": f"{i}.jpg", "reason": "empty file"} for i in range(1200)])
    ['  1,200 images: empty file', '    0.jpg', '    1.jpg', '    2.jpg', '    … and 1,197 more (--json lists all)']
    """
    keys: dict[str, list[str]] = {}
    for row in skipped:
        keys.setdefault(row["reason"], []).append(row["key"])
    lines = []
    for reason, images in sorted(keys.items(), key=lambda item: -len(item[1])):
        if len(images) <= MAX_KEYS:
            lines += [f"  {key}: {reason}" for key in images]
            continue
        lines += [f"  {len(images):,} images: {reason}", *(f"    {key}" for key in images[:MAX_KEYS])]
        lines.append(f"    … and {len(images) - MAX_KEYS:,} more (--json lists all)")
    if len(lines) > MAX_SKIPPED_LINES:
        lines = [*lines[:MAX_SKIPPED_LINES], "  … and more (--json lists all)"]
    return lines


def class_table(report: dict[str, Any]) -> RenderableType:
    """Rows by raw target and by label for each source: how the targets were mapped to two classes."""
    report = escape_all(report)
    targets = sorted({int(target) for row in report["distribution"] for target in row["targets"]})
    labels = ("real", "fake", "unknown")
    rows = [
        [row["source"], *(row["targets"].get(str(t), 0) for t in targets), *(row["labels"][label] for label in labels)]
        for row in report["distribution"]
    ]
    rows.append(["total", *(sum(row[i] for row in rows) for i in range(1, len(targets) + len(labels) + 1))])
    titles = ["none" if t < 0 else str(t) for t in targets]
    return table("rows by raw target and by label", ["source", *titles, *labels], rows)
