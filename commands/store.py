"""`clipfake store …`: look after a store."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    STORE,
    JsonOption,
    StoreOption,
)
from .terminal import show

app = typer.Typer(no_args_is_help=True, help="Look after a store.")


@app.command("info")
def store_info_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """What a store holds: sizes, labels, sources, encoder, indexes, heads."""
    from ..show.store import store_info
    from ..store.info import info
    from ..store.store import Store

    told = info(Store.open(store)).as_json()
    show(told if as_json else store_info(told))


@app.command("snapshots")
def store_snapshots_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """The snapshots one can go back to."""
    from ..show.store import history as history_table
    from ..store.info import history
    from ..store.store import Store

    told = history(Store.open(store)).as_json()
    show(told if as_json else history_table(told))


@app.command("undo")
def store_undo_command(
    number: Annotated[int, typer.Argument(help="Of the snapshot to go back to.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Go back to the rows of an earlier snapshot. Nothing is lost: this too can be undone."""
    from ..store.store import Store

    snapshot = Store.open(store).undo(number)
    told = {"snapshot": snapshot.number, "rows": len(snapshot)}
    show(told if as_json else f"snapshot {snapshot.number} has the {len(snapshot):,} rows of snapshot {number}")


@app.command("index")
def store_index_command(
    store: StoreOption = STORE,
    kind: Annotated[str, typer.Option(help="auto, or the kind of the index.")] = "auto",
    anew: Annotated[bool, typer.Option("--anew", help="Build it again even if it could be added to.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build or add to the k-NN indexes, one a label. Search is right without them, and quicker with them."""
    from ..show.store import built
    from ..store.index import build_index
    from ..store.store import Store

    told = build_index(Store.open(store), kind, seed=seed, anew=anew).as_json()  # type: ignore[arg-type]
    show(told if as_json else built(told))


@app.command("verify")
def store_verify_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Look at every byte: checksums, counts, leftovers, indexes. Exit 1 where something is damaged."""
    from ..show.store import health
    from ..store.verify import verify

    found = verify(store)
    show(found.as_json() if as_json else health(found.as_json()))
    if not found.sound:
        raise SystemExit(1)


@app.command("repair")
def store_repair_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Take out what is damaged, and never more; it is kept in the store's quarantine/ folder."""
    from ..show.store import repaired
    from ..store.repair import repair

    told = repair(store).as_json()
    show(told if as_json else repaired(told))


@app.command("compact")
def store_compact_command(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Give back the room of deleted rows and join small shards. Earlier snapshots cannot be gone back to after it."""
    from ..show.store import compacted
    from ..store.compact import compact
    from ..store.store import Store

    told = compact(Store.open(store)).as_json()
    show(told if as_json else compacted(told))


@app.command("push")
def store_push_command(
    to: Annotated[str, typer.Option("--to", help="URL of a Qdrant server, or a folder for Qdrant Edge, without one.")],
    store: StoreOption = STORE,
    collection: Annotated[str, typer.Option(help="Its name on the server.")] = "clipfake",
    shards: Annotated[int | None, typer.Option(min=1, help="Parts of a new collection, spread over the nodes.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of each part of a new collection.")] = None,
    quantised: Annotated[str, typer.Option(help="int8 or binary: a small copy in memory to search with.")] = "",
    recall: Annotated[float, typer.Option(min=0.5, max=1, help="Searches are planned for this recall@10.")] = 0.99,
    queries: Annotated[int, typer.Option(min=0, help="To measure recall with; 0: not at all, all exact.")] = 100,
    anew: Annotated[bool, typer.Option("--anew", help="Drop what is there first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the rows into a search engine beyond this machine. Killed and run again, it goes on. Counts, then asks it.

    clipfake store push --to http://node1:6333 --store mystore
    """
    from ..show.store import pushed
    from ..store.engine import push
    from ..store.qdrant import Layout, engine_at
    from ..store.store import Store

    if quantised not in ("", "int8", "binary"):
        raise typer.BadParameter(f"{quantised} is neither int8 nor binary", param_hint="--quantised")
    engine = engine_at(to, collection, Layout(shards, replicas, quantised))  # type: ignore[arg-type]
    try:
        snapshot = Store.open(store).snapshot()
        told = push(snapshot, engine, recall=recall, queries=queries, anew=anew).as_json()
    finally:
        engine.close()
    show(told if as_json else pushed(told))
