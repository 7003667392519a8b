"""Benchmarks of the detector.

leave_one_out.py, classifiers.py, training.py and query.py measure heads and queries, neighbors.py the evidence,
curation.py banks of few rows, fewshot.py added examples, copies.py copies of stored images, stability.py degraded
copies, fusion.py the fusion of other detectors' scores.
"""
