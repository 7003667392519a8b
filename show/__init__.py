"""What people look at: tables on a terminal, contact sheets, figures and reports."""
