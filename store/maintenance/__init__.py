"""Maintain a store.

info.py describes it; verify.py finds damage, repair.py removes it, salvage.py takes lost rows from other shards;
compact.py reclaims space; build_index.py builds k-NN indexes; near_duplicates.py finds copies; curate.py chooses a
smaller bank by facility_location.py
"""
