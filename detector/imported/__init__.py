"""Heads that others have trained and published, run on stored vectors of the space they were trained in.

arrays.py reads the arrays of a file without running code in it; head_format.py knows the formats, and which vectors
each reads; import_head.py checks the vectors, calibrates the head on the store's rows and saves it like a trained one.
"""
