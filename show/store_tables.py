"""A store's figures and history, as tables."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table


def store_info(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store info --json` gives, to be read by a person."""
    space = report["space"]
    facts = [
        f"store     {report['path']}",
        f"encoder   {space['encoder']} ({space['dim']}-d, {space['fingerprint'][:12]})",
        f"snapshot  {report['snapshot']} of {when(report['created'])}, {report['snapshots']} kept",
        f"size      {count(report['rows'], 'row')}, {count(report['categories'], 'category', 'categories')}, "
        f"{count(report['shards'], 'shard')}, {size(report['bytes'])}",
    ]
    if report["deleted_rows"]:
        facts.append(
            f"deleted   {count(report['deleted_rows'], 'row')}; `clipfake store compact` gives back their room"
        )
    labels = ("real", "fake", "unknown")
    rows = [[s["name"], s["rows"], *(s[label] for label in labels)] for s in report["sources"]]
    rows.append(["in all", report["rows"], *(report["labels"][label] for label in labels)])
    parts: list[RenderableType] = [Text("\n".join(facts) + "\n"), table("rows", ["source", "rows", *labels], rows)]
    for what in ("indexes", "heads"):
        if report[what]:
            made = [
                [m["name"], m["snapshot"], "older rows only" if m["stale"] else "up to date", size(m["bytes"])]
                for m in report[what]
            ]
            parts += [Text(), table(what, ["name", "snapshot", "state", "size"], made, words=["state"])]
    if report["columns"]:
        made = [[c["name"], c["encoder"], c["dim"], c["missing"]] for c in report["columns"]]
        parts += [
            Text(),
            table("more columns of vectors", ["name", "encoder", "dim", "rows missing"], made, words=["encoder"]),
        ]
    return Group(*parts)


def history(report: dict[str, Any]) -> RenderableType:
    """The snapshots one can go back to."""
    rows = [[str(s["number"]), s["rows"], when(s["created"]), s["note"]] for s in report["snapshots"]]
    return table("snapshots", ["number", "rows", "created", "by"], rows, words=["created", "by"])


def built(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store index --json` gives."""
    spent = f"{size(report['bytes'])}, {sum(report['seconds'].values()):.1f} s"
    text = f"{report['why'][:1].upper()}{report['why'][1:]} ({report['action']}, {spent})."
    if not report["labels"]:
        return Text(text)
    names = {0: "real", 1: "fake", -1: "unknown"}
    rows = [
        [names[one["label"]], one["kind"], one["rows"], one["cells"], min(one["recall"].values(), default=None)]
        for one in report["labels"]
    ]
    return Group(
        table("indexes", ["label", "kind", "rows", "cells", "lowest recall@10"], rows, words=["kind"]), Text(text)
    )


def health(report: dict[str, Any], store: str) -> RenderableType:
    """What `clipfake store verify --json` gives; `store` is its folder as one types it."""
    looked = f"{report['files']:,} files, {size(report['bytes'])}, {report['rows']:,} rows"
    if report["sound"]:
        parts: list[RenderableType] = [Text(f"sound: {looked}", style="green")]
    else:
        lost = sum(problem["lost"] for problem in report["problems"])
        text = f"damaged: {lost:,} of {report['rows']:,} rows cannot be trusted ({looked})"
        parts = [Text(text, style="red"), *(_found(one) for one in report["problems"])]
        parts.append(Text(f"next: clipfake store repair --store {store}, then the same clipfake index again"))
    if report["notes"]:
        parts += [Text("\nno damage, but to know:"), *(_found(one) for one in report["notes"])]
    return Group(*parts)


def _found(problem: dict[str, Any]) -> Text:
    rows = ", ".join(f"{first}–{last - 1}" for first, last in problem["rows"][:5])
    more = f" and {len(problem['rows']) - 5:,} more ranges" if len(problem["rows"]) > 5 else ""
    return Text(f"  {problem['path']}: {problem['what']}" + (f" (rows {rows}{more})" if rows else ""))


def repaired(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store repair --json` gives."""
    if not report["actions"]:
        return Text(f"nothing to repair: {report['rows']:,} rows in snapshot {report['snapshot']}")
    parts: list[RenderableType] = [Text(f"  {one['path']}: {one['what']}") for one in report["actions"]]
    text = f"{report['lost']:,} rows lost, {report['rows']:,} left in snapshot {report['snapshot']}"
    again = "\nthe same clipfake index again brings lost rows back" if report["lost"] else ""
    return Group(*parts, Text(text + again))


def compacted(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store compact --json` gives."""
    (shards, shards_now), (bytes_, bytes_now) = report["shards"], report["bytes"]
    before, now = f"{count(shards, 'shard')} of {size(bytes_)}", f"{shards_now:,} of {size(bytes_now)}"
    held = f"; {report['held']} still being read, to go next time" if report["held"] else ""
    given_up = f"{count(report['given_up'], 'earlier snapshot')} given up{held}"
    return Text(f"{count(report['rows'], 'row')}: {before} became {now}\n{given_up}")


def pushed(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store push --json` gives."""
    text = (
        f"{report['rows']:,} rows of snapshot {report['snapshot']} in {report['to']}: {report['pushed']:,} pushed, "
        f"{report['kept']:,} were there, {report['dropped']:,} taken out ({sum(report['seconds'].values()):.1f} s)"
    )
    if not report["recall"]:
        return Text(f"{text}; recall was not measured, every search is exact")
    rows = [[name, report["recall_unplanned"][name], reached] for name, reached in report["recall"].items()]
    return Group(Text(text), table("recall@10 against exact search", ["filter", "engine alone", "planned"], rows))


def exported(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store export --json` gives."""
    text = f"{report['rows']:,} rows of snapshot {report['snapshot']} in {report['folder']}"
    return Text(f"{text}: {report['files']:,} files, {size(report['bytes'])}, layout {report['layout']}")


def imported(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store import --json` gives."""
    return Text(
        f"{report['rows']:,} rows read from {report['folder']}: {report['added']:,} added, "
        f"{report['known']:,} already stored, {report['replaced']:,} replaced (snapshot {report['snapshot']})"
    )


def filled(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store column --json` gives."""
    text = (
        f"column {report['column']} ({report['encoder']}): {report['added']:,} of {report['rows']:,} rows added, "
        f"{report['known']:,} were there, {report['missing']:,} still have none"
    )
    parts = [Text(text), *(Text(f"  {key}: {why}") for key, why in list(report["failed"].items())[:5])]
    if report["failures"] > 5:
        parts.append(Text(f"  and {report['failures'] - 5:,} more (--json tells the first thousand)"))
    if report["missing"]:
        parts.append(Text("next: the same command, with --folders where the images are now"))
    return Group(*parts)


def count(number: int, what: str, many: str = "") -> str:
    """A number of things.

    >>> count(1, "group"), count(1200, "group"), count(2, "category", "categories")
    ('1 group', '1,200 groups', '2 categories')
    """
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def when(stamp: str) -> str:
    """A time as people read it; what is none of ours is left alone.

    >>> when("2026-11-24T23:08:58+00:00"), when("long ago")
    ('2026-11-24 23:08 UTC', 'long ago')
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?\+00:00", stamp)
    return f"{found[1]} {found[2]} UTC" if found else stamp


GROUPS_SHOWN = 10
KEYS_SHOWN = 4


def doubled(report: dict[str, Any]) -> RenderableType:
    """What `clipfake store duplicates --json` gives: the largest groups of copies."""
    groups = report["groups"]
    if not groups:
        return Text(f"no two of {report['rows']:,} rows are {report['threshold']:g} alike or more")
    rows = [
        [
            len(one["keys"]),
            round(one["similarity"], 4),
            "real and fake" if one["contradicts"] else "",
            _keys(one["keys"]),
        ]
        for one in groups[:GROUPS_SHOWN]
    ]
    text = (
        f"{count(len(groups), 'group')} of rows that are {report['threshold']:g} alike or more; {report['extra']:,} of "
        f"{report['rows']:,} rows are copies of another one. Across sources: {report['across_sources']:,}. "
        f"Called both real and fake: {report['contradicting']:,}."
    )
    more = (
        Text(f"and {len(groups) - GROUPS_SHOWN:,} smaller groups (--json tells all)")
        if len(groups) > GROUPS_SHOWN
        else Text()
    )
    columns = ["rows", "lowest similarity", "labels", "keys"]
    return Group(table("largest groups", columns, rows, words=columns[2:]), more, Text(text))


def _keys(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN:,} more" if len(keys) > KEYS_SHOWN else ""
    return "\n".join(keys[:KEYS_SHOWN]) + more


def size(count: int) -> str:
    """Bytes as people write them.

    >>> size(999), size(123_456_789)
    ('999 B', '123.5 MB')
    """
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError
