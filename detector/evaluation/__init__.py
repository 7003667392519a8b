"""Evaluation of detectors on sources and dates they have not seen.

leave_one_out.py holds out each source in turn, temporal_holdout.py splits by release date; both use ridge.py.
reproduce.py reproduces the source paper.
"""
