"""Stored vectors in, heads, evidence and verdicts out. Never opens an image file.

judging    detector.py: the score of a head.py, the neighbours of evidence.py, both calibrated by calibration.py;
           added_sources.py moves the score for sources that were added after training;
           verdict.py states the result; judgeable.py refuses pixels that hold nothing to judge
a head     projection.py to 128 dimensions or none, beside text that vocabulary.py chooses, then svm.py or linear.py;
           split.py assigns rows to train, validation and test
measuring  metrics.py for one classifier; comparison.py for two on the same rows
packages   training/ (fitting), evaluation/ (sources and dates left out, the paper's tables), copies/ (stored copies
           of a picture, by vectors and thumbnails), fusion/ (scores of several detectors), imported/ (heads that others
           have trained)
"""
