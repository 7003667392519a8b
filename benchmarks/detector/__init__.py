"""Benchmarks of the detector: leave_one_out.py, fewshot.py, stability.py, fusion.py, training.py and query.py."""
