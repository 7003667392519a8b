"""Building blocks that know nothing of images or vectors.

files      atomic_files.py writes files that are whole or absent; locking.py lets one writer in;
               sealed_json.py adds a format, a version and a digest
arithmetic threads.py keeps small products on one core; matrix_product.py gives large ones to the fastest library
"""
