"""Exchange rows with other tools.

export_rows.py writes numpy and parquet files, import_rows.py reads them; class_names.py are the names behind the
numbers of a label column; tables.py converts rows to pandas, Arrow and
parquet; torch_dataset.py gives PyTorch data sets; copy_rows.py copies rows to another store
"""
