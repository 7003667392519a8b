"""The commands: each parses its options, calls the packages below and prints. The root's cli puts them together.

jobs      index.py, train.py (with report), query.py, serve.py, evaluate.py, reproduce.py, bench.py, demo.py
upkeep    store.py, bank.py
shared    options.py that several take; choices.py are fixed sets of words; aliases.py accepts earlier spellings;
          opening.py names encoders; terminal.py prints
"""
