"""Sources of images: folders, archives, tables and URLs.

listing    folders.py lists any source as base.py describes it, by a table in tables.py or by the folder names that
           labels.py reads; named_source.py has a name and label given by the user; hash_set.py drops repeats
places     image_ref.py is one image and where its bytes are; archive.py reads zip and tar, with zip_directory.py;
           cloud.py reads URLs
"""
