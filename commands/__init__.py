"""The commands: each parses its options, calls the library and prints the result. The root module cli registers them.

work      index.py, train.py (with report), query.py, serve.py, evaluate.py, fuse.py, reproduce.py, bench.py,
          demo.py
upkeep    store.py; groups/ has the groups bank and head
shared    options.py has options of several commands; choices.py has enumerations; aliases.py accepts earlier spellings;
          terminal.py prints
"""
