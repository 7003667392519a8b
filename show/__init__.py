"""What people look at: tables on a terminal, contact sheets, figures and reports.

All of it is handed results and draws them; nothing is worked out here that a figure does not need.

    words     words.py, the same on a terminal, on a sheet and on the service's page
    terminal  card.py is a verdict, and the tables that others use; training.py, atlas.py, paper.py and store.py are
              results; screen.py is work in progress
    pictures  sheet.py is a contact sheet; report.py is the page of a head, with each picture.py of making.py,
              measures.py and unseen.py
"""
