"""Nearest-neighbour search over a snapshot.

matches.py holds matches and the reference search; results.py names the rows of matches; exact.py is exact search;
ann_index.py searches with an index of ivf.py lists; prepared_filter.py makes a filter reusable
"""
