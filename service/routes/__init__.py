"""One file an operation.

query.py, search.py, embed.py, knn.py, bank.py, stored.py and health.py; page.py serves the page
"""
