"""Labelled vectors on disk and the search over them. Knows no image, no model, no "fake" beyond a label."""
