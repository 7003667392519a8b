"""Fitting of heads on stored vectors.

fit.py trains, calibrates and saves a detector. train.py fits a head on the rows of examples.py: triplet.py fits the
source paper's projection, svm_training.py its SVM, nystroem.py that for many rows; classifiers.py fits every
classifier, logistic.py the linear one, classifier_choice.py compares them on left-out sources. baselines.py holds the
baselines, baseline_names.py their names. calibrate.py calibrates on unseen rows and left-out sources, coverage.py holds
the error rates that were measured on them; attribution.py measures how often the named generator is right.
"""
