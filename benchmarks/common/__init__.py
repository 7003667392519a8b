"""Helpers that several benchmarks share.

command.py parses options and prints results; naive.py is the reference script; architecture.py writes CLIP
architectures; flops.py counts operations; synthetic_rows.py draws rows.
"""
