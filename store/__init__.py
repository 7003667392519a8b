"""Labelled vectors on disk and the search over them. Knows no image, no model, no "fake" beyond a label.

The first four lines are the store; what follows is never needed for a right answer.

    writing     store.py creates and opens; writer.py seals rows with shard.py, takes some out again with deleted.py
                and commits with manifest.py; lock.py lets one writer in, durable.py makes files whole or absent
    reading     snapshot.py is what a reader sees: the rows of each shard that live.py leaves; filter.py says which of
                them, keys.py finds a key among millions
    rows        block.py is what goes in and out; space.py says which vectors may be compared; column.py keeps a
                second vector of each row, joined.py reads several as one
    searching   search.py has the answer and the plain search, exact.py the same over a snapshot; build.py makes
                indexes of cells.py and index.py asks them; scope.py readies a filter; cores.py keeps small
                products on one core, product.py gives large ones to the quickest library
    elsewhere   push.py fills what engine.py describes, recall.py measures it for plan.py, remote.py asks it; card.py
                is what it says of itself; qdrant.py chooses qdrant_edge.py or qdrant_server.py, both in the words of
                qdrant_terms.py
    upkeep      info.py tells, verify.py finds damage, repair.py takes it out, compact.py gives room back, pairs.py
                finds copies
    in and out  importing.py and exporting.py; table.py for pandas, Arrow and parquet; dataset.py for torch
    errors      errors.py, of all rooms
"""
