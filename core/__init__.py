"""Building blocks that know nothing of vectors, and of images only how large they are in memory.

files       atomic_files.py writes files atomically; locking.py has the writer lock and snapshot leases;
            reading.py opens regular files only, with limits; sealed_json.py adds a format, a version and a digest to
            JSON files; row_file.py and npy_file.py read arrays without mapping them; file_identity.py tells whether a
            file has changed
text        escaping.py escapes control characters in names that are shown
images      tiff_tiles.py tells the sides of what a decoder holds in memory at once
arithmetic  threads.py limits small products to one core; matrix_product.py computes large ones with oneDNN or MKL
"""
