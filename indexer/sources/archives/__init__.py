"""Zip and tar archives, read in place without unpacking them to disk.

zip_archive.py lists a zip with the help of zip_directory.py, the directory at its end. tar_archive.py lists a tar,
which has no directory, by its headers; sidecars.py are the metadata files beside its images, and tar_metadata.py is
all metadata elsewhere in it.
"""
