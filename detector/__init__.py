"""Stored vectors in, heads, evidence and verdicts out. Never opens an image."""
