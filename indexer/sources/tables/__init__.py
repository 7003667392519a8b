"""Tables with one row per image.

reading.py streams the rows of a table, whatever its format, encoding and separator; columns.py finds the columns by
their headings.
"""
