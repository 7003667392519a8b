"""What people look at: tables on a terminal, contact sheets, figures and reports.

text       phrasing.py, shared by the terminal, the sheet and the service's page
terminal   verdict_panel.py; training_summary.py, evaluation_tables.py, reproduce_tables.py and store_tables.py show
           results; progress_display.py shows work in progress
pictures   contact_sheet.py; report.py is the page of a head, with each figure.py of training_figures.py,
           metric_figures.py and evaluation_figures.py
"""
