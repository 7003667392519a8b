"""Tables and texts for the reports of `clipfake store`."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.escaping import escape_all
from .tables import table


def store_info(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store info`."""
    report = escape_all(report)
    space = report["space"]
    facts = [
        f"store     {report['path']}",
        f"encoder   {space['encoder']} ({space['dim']}-d, {space['fingerprint'][:12]})",
        f"snapshot  {report['snapshot']} of {when(report['created'])}, {report['snapshots']} kept",
        f"size      {count(report['rows'], 'row')}, {count(report['categories'], 'category', 'categories')}, "
        f"{count(report['shards'], 'shard')}, {size(report['bytes'])}",
    ]
    if report["deleted_rows"]:
        facts.append(f"deleted   {count(report['deleted_rows'], 'row')}; `clipfake store compact` frees their space")
    labels = ("real", "fake", "unknown")
    rows = [[s["name"], s["rows"], *(s[label] for label in labels)] for s in report["sources"]]
    rows.append(["total", report["rows"], *(report["labels"][label] for label in labels)])
    parts: list[RenderableType] = [Text("\n".join(facts) + "\n"), table("rows", ["source", "rows", *labels], rows)]
    for kind in ("indexes", "heads"):
        if report[kind]:
            derived = [
                [m["name"], m["snapshot"], "older rows only" if m["stale"] else "up to date", size(m["bytes"])]
                for m in report[kind]
            ]
            parts += [Text(), table(kind, ["name", "snapshot", "state", "size"], derived, words=["state"])]
    if report["columns"]:
        named = [
            [c["name"], "view of the encoder" if c["view"] else c["encoder"], c["dim"], c["missing"]]
            for c in report["columns"]
        ]
        parts += [
            Text(),
            table("named vectors", ["name", "made by", "dim", "rows missing"], named, words=["made by"]),
        ]
    return Group(*parts)


def history(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store snapshots`."""
    report = escape_all(report)
    rows = [[str(s["number"]), s["rows"], when(s["created"]), s["note"]] for s in report["snapshots"]]
    return table("snapshots", ["number", "rows", "created", "by"], rows, words=["created", "by"])


LABEL_NAMES = {0: "real", 1: "fake", -1: "unknown"}
KIND_NAMES = {"compact": "quantized"}  # of index kinds on disk whose option is called otherwise


def built(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store index`."""
    report = escape_all(report)
    cost = f"{size(report['bytes'])}, {sum(report['seconds'].values()):.1f} s"
    text = f"{report['why'][:1].upper()}{report['why'][1:]} ({report['action']}, {cost})."
    if not report["labels"]:
        return Text(text)
    rows = [
        [
            LABEL_NAMES[index["label"]],
            KIND_NAMES.get(index["kind"], index["kind"]),
            index["rows"],
            index["cells"],
            min(index["recall"].values(), default=None),
        ]
        for index in report["labels"]
    ]
    return Group(
        table("indexes", ["label", "kind", "rows", "cells", "lowest recall@10"], rows, words=["kind"]), Text(text)
    )


def health(report: dict[str, Any], store: str) -> RenderableType:
    """Format the report of `clipfake store verify`; `store` is the folder quoted for a shell."""
    report = escape_all(report)
    checked = f"{report['files']:,} files, {size(report['bytes'])}, {report['rows']:,} rows"
    if report["sound"]:
        parts: list[RenderableType] = [Text(f"sound: {checked}", style="green")]
    else:
        lost = sum(problem["lost"] for problem in report["problems"])
        text = f"damaged: {lost:,} of {report['rows']:,} rows cannot be trusted ({checked})"
        if not report["files"]:  # none is examined in a store with links
            text = "refused: nothing was verified"
        parts = [Text(text, style="red"), *(_problem_line(problem) for problem in report["problems"])]
        if report["files"]:
            parts.append(Text(f"next: clipfake store repair --store {store}, then repeat the clipfake index command"))
    if report["notes"]:
        parts += [Text("\nnotes (no damage):"), *(_problem_line(note) for note in report["notes"])]
    return Group(*parts)


def _problem_line(problem: dict[str, Any]) -> Text:
    rows = ", ".join(f"{first}–{last - 1}" for first, last in problem["rows"][:5])
    more = f" and {len(problem['rows']) - 5:,} more ranges" if len(problem["rows"]) > 5 else ""
    return Text(f"  {problem['path']}: {problem['what']}" + (f" (rows {rows}{more})" if rows else ""))


def repaired(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store repair`."""
    report = escape_all(report)
    if not report["actions"]:
        return Text(f"nothing to repair: {report['rows']:,} rows in snapshot {report['snapshot']}")
    parts: list[RenderableType] = [Text(f"  {action['path']}: {action['what']}") for action in report["actions"]]
    text = f"{report['lost']:,} rows lost, {report['rows']:,} left in snapshot {report['snapshot']}"
    hint = "\nrepeat the clipfake index command to restore the lost rows" if report["lost"] else ""
    return Group(*parts, Text(text + hint))


def compacted(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store compact`."""
    report = escape_all(report)
    (shards, shards_now), (bytes_, bytes_now) = report["shards"], report["bytes"]
    # bytes are of all shards on the disk, which are more than the snapshot's while earlier ones are kept
    before, now = f"{count(shards, 'shard')}, {size(bytes_)} on disk,", f"{shards_now:,}, {size(bytes_now)} on disk"
    notes = [f"{count(report['given_up'], 'earlier snapshot')} removed"]
    if report["held"]:
        notes.append(f"{report['held']} still in use, removed by a later writer or compact")
    if report["kept"]:
        until = f" until {when(report['kept_until'])}" if report["kept_until"] else ""
        notes.append(f"{report['kept']} kept{until} for copies under way (--grace 0 keeps none)")
    if report["reclaimable"]:
        notes.append(f"{size(report['reclaimable'])} more will be free without them")
    return Text(f"{count(report['rows'], 'row')}: {before} became {now}\n{'; '.join(notes)}")


def pushed(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store push`."""
    report = escape_all(report)
    text = (
        f"{report['rows']:,} rows of snapshot {report['snapshot']} in {report['to']}: {report['pushed']:,} pushed, "
        f"{report['kept']:,} kept, {report['dropped']:,} removed ({sum(report['seconds'].values()):.1f} s)"
    )
    if not report["recall"]:
        return Text(f"{text}; recall was not measured, every search is exact")
    rows = [
        [_with_label_name(name), report["recall_unplanned"][name], reached]
        for name, reached in report["recall"].items()
    ]
    return Group(Text(text), table("recall@10 against exact search", ["filter", "back end alone", "planned"], rows))


def _with_label_name(filter_name: str) -> str:
    """Spell out the label in the name of a measured filter.

    >>> _with_label_name("label 0 in 2 categories"), _with_label_name("all")
    ('label real in 2 categories', 'all')
    """
    return re.sub(r"^label (-?\d+)", lambda match: f"label {LABEL_NAMES[int(match[1])]}", filter_name)


def exported(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store export`."""
    report = escape_all(report)
    text = f"{report['rows']:,} rows of snapshot {report['snapshot']} in {report['folder']}"
    return Text(f"{text}: {report['files']:,} files, {size(report['bytes'])}, layout {report['layout']}")


def imported(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store import`."""
    report = escape_all(report)
    return Text(
        f"{report['rows']:,} rows read from {report['folder']}: {report['added']:,} added, "
        f"{report['known']:,} already stored, {report['replaced']:,} replaced, "
        f"{report['relabelled']:,} relabelled (snapshot {report['snapshot']})"
    )


def curated(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store curate`: what is kept of each source, and how far the others are from it."""
    report = escape_all(report)
    columns = ["source", "label", "rows", "kept", "radius", "mean distance"]
    rows = [
        [source[name] for name in ("source", "label", "rows", "kept", "radius", "mean_distance")]
        for source in report["sources"]
    ]
    text = f"{report['kept']:,} of {report['rows']:,} rows of {report['store']} copied to {report['to']}"
    unlabelled = f"; {count(report['unlabelled'], 'row')} without a label left out" if report["unlabelled"] else ""
    return Group(
        table("rows by source", columns, rows, words=columns[:2]),
        Text(
            f"{text}{unlabelled}. The distance of a row is 1 - cosine similarity to the nearest kept one of its source."
        ),
    )


def filled(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store add-vectors`."""
    report = escape_all(report)
    text = (
        f"vectors {report['column']} ({report['encoder']}): {report['added']:,} of {report['rows']:,} rows added, "
        f"{report['known']:,} already stored, {report['missing']:,} still missing"
    )
    parts = [Text(text), *(Text(f"  {key}: {reason}") for key, reason in list(report["failed"].items())[:5])]
    if report["failures"] > 5:
        parts.append(Text(f"  and {report['failures'] - 5:,} more (--json lists the first thousand)"))
    if report["missing"]:
        parts.append(Text("next: repeat the command, with --folders set to where the images are now"))
    return Group(*parts)


def count(number: int, singular: str, plural: str = "") -> str:
    """Format a number with its noun.

    >>> count(1, "group"), count(1200, "group"), count(2, "category", "categories")
    ('1 group', '1,200 groups', '2 categories')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def when(stamp: str) -> str:
    """Format an ISO 8601 time in UTC; any other text is returned as it is.

    >>> when("2026-11-24T23:08:58+00:00"), when("long ago")
    ('2026-11-24 23:08 UTC', 'long ago')
    """
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?\+00:00", stamp)
    return f"{match[1]} {match[2]} UTC" if match else stamp


MAX_GROUPS = 10
MAX_KEYS = 4  # of one group


def doubled(report: dict[str, Any]) -> RenderableType:
    """Format the report of `clipfake store duplicates`: the largest groups of copies."""
    report = escape_all(report)
    groups = report["groups"]
    if not groups:
        return Text(f"no two of {report['rows']:,} rows have a cosine similarity of {report['threshold']:g} or more")
    rows = [
        [
            len(group["keys"]),
            round(group["similarity"], 4),
            "real and fake" if group["contradicts"] else "",
            _keys(group["keys"]),
        ]
        for group in groups[:MAX_GROUPS]
    ]
    text = (
        f"{count(len(groups), 'group')} of rows with a cosine similarity of {report['threshold']:g} or more; "
        f"{report['extra']:,} of {report['rows']:,} rows are copies of another one. "
        f"Groups across sources: {report['across_sources']:,}. "
        f"Groups labelled both real and fake: {report['contradicting']:,}."
    )
    more = (
        Text(f"and {len(groups) - MAX_GROUPS:,} smaller groups (--json lists all)")
        if len(groups) > MAX_GROUPS
        else Text()
    )
    columns = ["rows", "similarity", "labels", "keys"]
    return Group(table("largest groups", columns, rows, words=columns[2:]), more, Text(text))


def _keys(keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_KEYS:,} more" if len(keys) > MAX_KEYS else ""
    return "\n".join(keys[:MAX_KEYS]) + more


def size(count: int) -> str:
    """Format a number of bytes with a decimal unit.

    >>> size(999), size(123_456_789)
    ('999 B', '123.5 MB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError
