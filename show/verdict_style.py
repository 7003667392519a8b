"""The sign and the colours of each verdict, for the terminal, the contact sheet and the figures.

The service's page has its own copy in service/static/page.css and page.html: a light and a dark theme need other
shades of the same blue and orange.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VerdictStyle:
    """How one verdict is marked. Every colour comes with a sign and a word, so nothing depends on colour alone."""

    sign: str
    print_color: str  # hex, on white: contact sheet, figures, report
    terminal_color: str  # hex, lighter: legible on a dark and on a light terminal


# blue and orange can be told apart with every common colour vision deficiency
VERDICT_STYLES = {
    "real": VerdictStyle("●", "#1f6fb2", "#2f86d0"),
    "fake": VerdictStyle("▲", "#c8501e", "#d9622b"),
    "unsure": VerdictStyle("◆", "#505b67", "#8e99a5"),
}
