"""Benchmarks of the detector: leave_one_out.py, fewshot.py, training.py, copies.py and query.py."""
