"""Fitting of heads on stored vectors.

fit.py trains, calibrates and saves a detector. train.py fits a head on the rows of examples.py: triplet.py fits the
projection, svm_training.py the classifier, nystroem.py the classifier for many rows. baselines.py holds the baselines,
baseline_names.py their names. calibrate.py calibrates on unseen rows and left-out sources, coverage.py holds the error
rates that were measured on them.
"""
