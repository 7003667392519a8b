"""How well a detector does on what it has never seen.

leave_one_out.py holds out each source in turn; temporal_holdout.py splits by release date; both use ridge.py;
reproduce.py repeats the source paper
"""
