"""A store's figures and history, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .card import table


def store_info(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store info --json` gives, to be read by a person."""
    space = told["space"]
    facts = [
        f"store     {told['path']}",
        f"encoder   {space['encoder']} ({space['dim']}-d, {space['fingerprint'][:12]})",
        f"snapshot  {told['snapshot']} of {told['created']}, {told['snapshots']} kept",
        f"size      {told['rows']:,} rows, {told['categories']:,} categories, {told['shards']:,} shards, "
        f"{size(told['bytes'])}, {told['deleted_rows']:,} deleted rows to compact",
    ]
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
            parts += [Text(), table(what, ["name", "snapshot", "state", "size"], made)]
    return Group(*parts)


def history(told: dict[str, Any]) -> RenderableType:
    """The snapshots one can go back to."""
    rows = [[str(s["number"]), s["rows"], s["created"], s["note"]] for s in told["snapshots"]]
    return table("snapshots", ["number", "rows", "created", "by"], rows)


def built(told: dict[str, Any]) -> RenderableType:
    """What `clipfake store index --json` gives."""
    said = f"{told['action']}: {told['why']} ({size(told['bytes'])}, {sum(told['seconds'].values()):.1f} s)"
    if not told["labels"]:
        return Text(said)
    names = {0: "real", 1: "fake", -1: "unknown"}
    rows = [
        [names[one["label"]], one["kind"], one["rows"], one["cells"], min(one["recall"].values(), default=None)]
        for one in told["labels"]
    ]
    return Group(table("indexes", ["label", "kind", "rows", "cells", "lowest recall@10"], rows), Text(said))


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
