"""Benchmarks of the detector: leave_one_out.py, neighbors.py, classifiers.py, fewshot.py, training.py and query.py."""
