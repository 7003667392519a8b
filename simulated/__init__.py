"""Simulated images and a stand-in encoder, for a first run that needs no download.

images.py draws a small data set, standin_encoder.py builds a small CLIP from a seed, and notice.py has the notice that
limits the meaning of its verdicts
"""
