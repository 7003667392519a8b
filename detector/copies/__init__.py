"""Stored copies of a queried picture: proposed by vectors, confirmed by thumbnails. Never opens an image file.

picture.py decodes a thumbnail to grids of fixed size, alignment.py finds the part that two pictures have in common and
compares it block by block, finder.py looks among the nearest stored rows of a query.
"""
