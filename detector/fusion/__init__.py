"""Fusion of the scores of several detectors: one score and a prediction set per image.

curves.py fits one increasing curve per signal; fusion.py adds prediction sets and scores held-out halves, which
fusion_report.py measures; score_table.py reads and writes a CSV.
"""
