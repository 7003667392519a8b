"""Benchmarks of the store: search.py, file_format.py and backends.py."""
