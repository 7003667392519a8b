"""Labelled vectors on disk and the search over them. Knows no image and no model.

writing     store.py creates and opens; writer.py appends, deletes and commits; shard.py is one sealed HDF5 file;
            tombstones.py lists deleted rows; manifest.py lists the shards of a snapshot
reading     snapshot.py is one consistent view of the rows, over each live_shard.py; filter.py selects rows;
            key_index.py finds a key among millions
rows        records.py holds rows and vectors; space.py says which vectors may be compared; named_vectors.py keeps
            further vectors of each row; concatenated.py reads several as one
packages    search/ (nearest neighbours), exchange/ (import and export), backends/ (search servers),
            maintenance/ (verify, repair, compact, indexes, duplicates)
"""
