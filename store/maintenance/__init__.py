"""Looking after a store.

info.py describes; verify.py finds damage; repair.py removes it; compact.py reclaims space; build_index.py builds
k-NN indexes; near_duplicates.py finds copies
"""
