"""Sources of images: folders, archives, tables and URLs.

listing    folders.py lists any source with the help of base.py: by a table (tables.py) or by the folder names
           (labels.py); named_source.py has a name and label set by the user; hash_set.py finds repeated rows
bytes      image_ref.py is one image and the location of its bytes; archive.py reads zip and tar, with
           zip_directory.py; cloud.py reads URLs
"""
