"""Evaluation of detectors on sources and dates they have not seen.

leave_one_out.py holds out each source in turn, temporal_holdout.py splits by release date; both use ridge.py.
view_gains.py compares named vectors with the main ones on left-out sources.
reproduce.py reproduces the source paper.
"""
