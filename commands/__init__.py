"""The commands: each parses its options, calls the rooms below and prints. The root's cli puts them together.

One file a command, or a few that belong together:

    jobs    index.py, train.py (with report), query.py, serve.py, evaluate.py, reproduce.py, bench.py, demo.py
    upkeep  store.py, bank.py
    shared  options.py that several take, opening.py for a store and its encoder, terminal.py for where words go
"""
