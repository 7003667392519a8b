"""Nearest-neighbour search over a snapshot.

matches.py has the result type and a reference search; results.py adds the rows of matches; exact.py is exact search;
ann_index.py searches approximately, with the IVF indexes of ivf.py, whose cells cell_file.py reads into memory;
prepared_filter.py makes filters reusable
"""
