"""The commands: each parses its options, calls the rooms below and prints. cli.py puts them together."""
