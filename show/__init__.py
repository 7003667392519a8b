"""Presentation for people: tables on the terminal, contact sheets, figures and reports.

style      verdict_style.py has the colours and signs of verdicts, phrasing.py describes verdicts in words
terminal   verdict_panel.py shows a verdict; training_summary.py, evaluation_tables.py, reproduce_tables.py and
           store_tables.py show results with the console and the helpers of tables.py; progress_display.py shows
           running work
images     images/ has contact sheets of queried images beside their nearest neighbours, and maps of their patches
report     report.py renders the page of a head from templates/, with each figure.py of training_figures.py,
           metric_figures.py and evaluation_figures.py
"""
