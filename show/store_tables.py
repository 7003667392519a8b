"""A store's figures and history, as tables."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import table


def store_info(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store info --json` gives, to be read by a person."""
    space = told["space"]
    facts = [
        f"store     {told['path']}",
        f"encoder   {space['encoder']} ({space['dim']}-d, {space['fingerprint'][:12]})",
        f"snapshot  {told['snapshot']} of {when(told['created'])}, {told['snapshots']} kept",
        f"size      {count(told['rows'], 'row')}, {count(told['categories'], 'category', 'categories')}, "
        f"{count(told['shards'], 'shard')}, {size(told['bytes'])}",
    ]
    if told["deleted_rows"]:
        facts.append(f"deleted   {count(told['deleted_rows'], 'row')}; `clipfake store compact` gives back their room")
    labels = ("real", "fake", "unknown")
    rows = [[s["name"], s["rows"], *(s[label] for label in labels)] for s in told["sources"]]
    rows.append(["in all", told["rows"], *(told["labels"][label] for label in labels)])
    parts: list[RenderableType] = [Text("\n".join(facts) + "\n"), table("rows", ["source", "rows", *labels], rows)]
    for what in ("indexes", "heads"):
        if told[what]:
            made = [
                [m["name"], m["snapshot"], "older rows only" if m["stale"] else "up to date", size(m["bytes"])]
                for m in told[what]
            ]
            parts += [Text(), table(what, ["name", "snapshot", "state", "size"], made, words=["state"])]
    if told["columns"]:
        made = [[c["name"], c["encoder"], c["dim"], c["missing"]] for c in told["columns"]]
        parts += [
            Text(),
            table("more columns of vectors", ["name", "encoder", "dim", "rows missing"], made, words=["encoder"]),
        ]
    return Group(*parts)


def history(told: dict[str, Any]) -> RenderableType:
    """The snapshots one can go back to."""
    rows = [[str(s["number"]), s["rows"], when(s["created"]), s["note"]] for s in told["snapshots"]]
    return table("snapshots", ["number", "rows", "created", "by"], rows, words=["created", "by"])


def built(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store index --json` gives."""
    spent = f"{size(told['bytes'])}, {sum(told['seconds'].values()):.1f} s"
    said = f"{told['why'][:1].upper()}{told['why'][1:]} ({told['action']}, {spent})."
    if not told["labels"]:
        return Text(said)
    names = {0: "real", 1: "fake", -1: "unknown"}
    rows = [
        [names[one["label"]], one["kind"], one["rows"], one["cells"], min(one["recall"].values(), default=None)]
        for one in told["labels"]
    ]
    return Group(
        table("indexes", ["label", "kind", "rows", "cells", "lowest recall@10"], rows, words=["kind"]), Text(said)
    )


def health(told: dict[str, Any], store: str) -> RenderableType:
    """What `clipfake store verify --json` gives; `store` is its folder as one types it."""
    looked = f"{told['files']:,} files, {size(told['bytes'])}, {told['rows']:,} rows"
    if told["sound"]:
        parts: list[RenderableType] = [Text(f"sound: {looked}", style="green")]
    else:
        lost = sum(problem["lost"] for problem in told["problems"])
        said = f"damaged: {lost:,} of {told['rows']:,} rows cannot be trusted ({looked})"
        parts = [Text(said, style="red"), *(_found(one) for one in told["problems"])]
        parts.append(Text(f"next: clipfake store repair --store {store}, then the same clipfake index again"))
    if told["notes"]:
        parts += [Text("\nno damage, but to know:"), *(_found(one) for one in told["notes"])]
    return Group(*parts)


def _found(problem: dict[str, Any]) -> Text:
    rows = ", ".join(f"{first}–{last - 1}" for first, last in problem["rows"][:5])
    more = f" and {len(problem['rows']) - 5:,} more ranges" if len(problem["rows"]) > 5 else ""
    return Text(f"  {problem['path']}: {problem['what']}" + (f" (rows {rows}{more})" if rows else ""))


def repaired(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store repair --json` gives."""
    if not told["actions"]:
        return Text(f"nothing to repair: {told['rows']:,} rows in snapshot {told['snapshot']}")
    parts: list[RenderableType] = [Text(f"  {one['path']}: {one['what']}") for one in told["actions"]]
    said = f"{told['lost']:,} rows lost, {told['rows']:,} left in snapshot {told['snapshot']}"
    again = "\nthe same clipfake index again brings lost rows back" if told["lost"] else ""
    return Group(*parts, Text(said + again))


def compacted(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store compact --json` gives."""
    (shards, shards_now), (bytes_, bytes_now) = told["shards"], told["bytes"]
    before, now = f"{count(shards, 'shard')} of {size(bytes_)}", f"{shards_now:,} of {size(bytes_now)}"
    held = f"; {told['held']} still being read, to go next time" if told["held"] else ""
    given_up = f"{count(told['given_up'], 'earlier snapshot')} given up{held}"
    return Text(f"{count(told['rows'], 'row')}: {before} became {now}\n{given_up}")


def pushed(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store push --json` gives."""
    said = (
        f"{told['rows']:,} rows of snapshot {told['snapshot']} in {told['to']}: {told['pushed']:,} pushed, "
        f"{told['kept']:,} were there, {told['dropped']:,} taken out ({sum(told['seconds'].values()):.1f} s)"
    )
    if not told["recall"]:
        return Text(f"{said}; recall was not measured, every search is exact")
    rows = [[name, told["recall_unplanned"][name], reached] for name, reached in told["recall"].items()]
    return Group(Text(said), table("recall@10 against exact search", ["filter", "engine alone", "planned"], rows))


def exported(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store export --json` gives."""
    said = f"{told['rows']:,} rows of snapshot {told['snapshot']} in {told['folder']}"
    return Text(f"{said}: {told['files']:,} files, {size(told['bytes'])}, layout {told['layout']}")


def imported(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store import --json` gives."""
    return Text(
        f"{told['rows']:,} rows read from {told['folder']}: {told['added']:,} added, {told['known']:,} were there, "
        f"{told['replaced']:,} replaced (snapshot {told['snapshot']})"
    )


def filled(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store column --json` gives."""
    said = (
        f"column {told['column']} ({told['encoder']}): {told['added']:,} of {told['rows']:,} rows added, "
        f"{told['known']:,} were there, {told['missing']:,} still have none"
    )
    parts = [Text(said), *(Text(f"  {key}: {why}") for key, why in list(told["failed"].items())[:5])]
    if told["failures"] > 5:
        parts.append(Text(f"  and {told['failures'] - 5:,} more (--json tells the first thousand)"))
    if told["missing"]:
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


def doubled(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store duplicates --json` gives: the largest groups of copies."""
    groups = told["groups"]
    if not groups:
        return Text(f"no two of {told['rows']:,} rows are {told['threshold']:g} alike or more")
    rows = [
        [
            len(one["keys"]),
            round(one["similarity"], 4),
            "real and fake" if one["contradicts"] else "",
            _keys(one["keys"]),
        ]
        for one in groups[:GROUPS_SHOWN]
    ]
    said = (
        f"{count(len(groups), 'group')} of rows that are {told['threshold']:g} alike or more; {told['extra']:,} of "
        f"{told['rows']:,} rows are copies of another one. Across sources: {told['across_sources']:,}. "
        f"Called both real and fake: {told['contradicting']:,}."
    )
    more = (
        Text(f"and {len(groups) - GROUPS_SHOWN:,} smaller groups (--json tells all)")
        if len(groups) > GROUPS_SHOWN
        else Text()
    )
    columns = ["rows", "lowest similarity", "labels", "keys"]
    return Group(table("largest groups", columns, rows, words=columns[2:]), more, Text(said))


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
