"""Fitting heads from stored vectors.

fit.py trains, calibrates and saves a detector; train.py fits a head on examples.py: triplet.py the projection,
svm_training.py the classifier, nystroem.py for many rows; baselines.py are trained beside it under the names of
baseline_names.py; calibrate.py measures it on left-out generators
"""
