"""Labelled vectors on disk, and searches over them. Independent of images and models.

writing     store.py creates and opens stores; writer.py appends, deletes and commits; shard.py is one HDF5 file;
            tombstones.py lists deleted rows; manifest.py lists the shards of a snapshot; retention.py removes what
            is not kept; rooms.py has the folders of a store and refuses links
reading     snapshot.py is a consistent view of the rows, live_shard.py of those of one shard; filter.py selects rows;
            key_index.py looks up keys
rows        records.py has rows and vectors; space.py identifies embedding spaces; named_vectors.py stores further
            vectors of each row; concatenated.py joins several into one
packages    search/ (nearest neighbours), exchange/ (import and export), backends/ (search servers),
            maintenance/ (verify, repair, compact, indexes, duplicates)
"""
