"""Rows in and out of a store in formats that other tools read.

export_rows.py and import_rows.py; tables.py for pandas, Arrow and parquet; torch_dataset.py for PyTorch
"""
