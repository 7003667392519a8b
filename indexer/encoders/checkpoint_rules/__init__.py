"""What `transformers` takes for granted about a checkpoint, as plain data and rules.

image_processors.py has the defaults and the steps of the image processor classes, weight_names.py the names of weights
that may be missing or left over.
"""
