"""Sources of images: folders, archives, tables and URLs.

listing    folders.py lists any source with the help of base.py and trees.py: by metadata tables (table_images.py) or
           by the folder names (labels.py); file_names.py knows what is an image; table_source.py is a table of paths,
           named_source.py has a name and label set by the user; hash_set.py finds repeated rows
bytes      image_ref.py is one image and the location of its bytes, stored_paths.py what the store keeps of it; urls.py
           reads URLs, web.py those of web servers, cloud.py lists folders at URLs
packages   `tables` reads CSV, JSON lines and parquet, `archives` zip and tar
"""
