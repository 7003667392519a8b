"""Benchmarks of the store: search.py, file_format.py, backends.py and views.py (further vectors of each image)."""
