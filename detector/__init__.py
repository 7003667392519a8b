"""Stored vectors in, heads, evidence and verdicts out. Never opens an image.

The first two lines give a verdict; the others make a head and say what it is worth.

    asking      detector.py: a score of head.py, witnesses of evidence.py, what both are worth by calibration.py, and
                verdict.py says it
    a head      projection.py to 128 dimensions, beside the text that category.py chooses, then svm.py
    learning    train.py: split.py deals rows, examples.py holds or streams them, triplet.py fits the projection and
                fitting.py the machine, nystroem.py for many rows; baselines.py stand beside it, heldout.py
                calibrates, and making.py does it all and keeps it
    measuring   metrics.py, of one; comparison.py, of two on the same rows
    evaluating  atlas.py leaves out every source in turn, replay.py goes by days of release, both with the heads of
                ridge.py; paper.py runs the source report again
"""
