"""What several benchmarks share.

command.py parses and prints; naive.py is the reference script; architecture.py writes CLIP architectures; flops.py
counts arithmetic; synthetic_rows.py draws rows
"""
