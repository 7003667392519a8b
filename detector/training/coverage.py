"""Measured error rates of a calibration: on rows of stored sources, and on sources that were left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL
from ..calibration import Labels
from ..verdict import format_percent

ENOUGH_SOURCES = 3  # of a class, to say how the verdicts of new ones do
ENOUGH_ROWS = 10  # of a source, to call it the worst
TOLERANCE = 0.5  # share of the nominal error rate by which a measured one may exceed it, however few rows there are


@dataclass(frozen=True)
class SourceCoverage:
    """What the verdicts of one source's rows were."""

    name: str
    label: str  # "real" or "fake"
    n: int  # number of rows
    auc: float | None  # of their scores against those of the seen rows of the other class
    answered: float  # share of rows whose answer is real or fake, not unsure
    excluded: float  # share of rows for which the true class was ruled out, thus also of those answered wrongly


@dataclass(frozen=True)
class CoverageReport:
    """Measured error rates beside the nominal one."""

    n: int  # number of measured rows
    real: int  # of them real
    fake: int  # of them fake
    calibrated_on: int  # effective number of calibration rows of the smaller class
    nominal: float  # nominal error rate
    answered: float  # share of rows whose answer is real or fake, not unsure
    wrong: float | None  # share of these answers that are wrong
    real_excluded: float | None  # share of real rows for which real was ruled out; should be at most `nominal`
    fake_excluded: float | None  # share of fake rows for which fake was ruled out; should be at most `nominal`
    sources: tuple[SourceCoverage, ...] = ()

    @classmethod
    def measure(
        cls,
        labels: Labels,
        possible: npt.NDArray[np.bool_],
        nominal: float,
        calibrated_on: int,
        sources: tuple[SourceCoverage, ...] = (),
    ) -> CoverageReport:
        """Measure the (rows, 2) prediction sets of rows with known labels."""
        true = possible[np.arange(len(labels)), labels]
        answered = possible.sum(1) == 1
        return cls(
            n=len(labels),
            real=int((labels == REAL).sum()),
            fake=int((labels == FAKE).sum()),
            calibrated_on=calibrated_on,
            nominal=nominal,
            answered=float(answered.mean()),
            wrong=_share(~true[answered]),
            real_excluded=_share(~true[labels == REAL]),
            fake_excluded=_share(~true[labels == FAKE]),
            sources=sources,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """Report the measured rates of seen sources beside the nominal one."""
        excluded = {"real": self.real_excluded, "fake": self.fake_excluded}
        rates = ", ".join(f"{rate:.1%} of the {name} rows" for name, rate in excluded.items() if rate is not None)
        text = f"Seen sources: {self.answered:.0%} of {self.n:,} rows got an answer"
        if self.wrong is not None:
            text += f", {self.wrong:.1%} of the answers are wrong"
        text += f"; the true class was ruled out for {rates} (nominal {format_percent(self.nominal)})"
        return text + ("; the nominal error rate does not hold for them." if self.broken else ".")

    @property
    def broken(self) -> bool:
        """True if a measured rate exceeds the nominal one by more than chance (one-sided 97.5 %, for each class)."""
        return any(
            rate is not None and self.exceeds(rate, rows)
            for rate, rows in ((self.real_excluded, self.real), (self.fake_excluded, self.fake))
        )

    def exceeds(self, rate: float, rows: int) -> bool:
        """True if a rate measured on this number of rows is above the nominal one by more than chance.

        The measured rate varies by chance with the measured rows and also with the calibration rows, as the nominal
        rate holds on average over calibrations.
        """
        spread = self.nominal * (1 - self.nominal)
        return bool(rate > self.nominal + 2 * np.sqrt(spread / rows + spread / self.calibrated_on))


def _share(wrong: npt.NDArray[np.bool_]) -> float | None:
    return float(wrong.mean()) if len(wrong) else None


@dataclass(frozen=True)
class UnseenClass:
    """How the verdicts of one class did on sources that were left out, each source counting the same."""

    label: str  # "real" or "fake"
    stored: int  # number of sources of the class that head and bank know
    sources: tuple[SourceCoverage, ...]  # the left-out ones, the worst first
    nominal: float  # nominal error rate
    broken: bool  # the measured rate is above it by more than chance

    @classmethod
    def of(cls, label: str, stored: int, report: CoverageReport | None, nominal: float) -> UnseenClass:
        """Select the sources of one class from the report on all left-out rows, None if nothing could be left out."""
        of_class = [source for source in report.sources if source.label == label] if report else []
        sources = tuple(sorted(of_class, key=lambda source: (-source.excluded, source.name)))
        rows = sum(source.n for source in sources)
        result = cls(label, stored, sources, nominal, False)
        if report is None or result.excluded is None:
            return result
        # a few rows cannot show that the nominal rate holds: far above it, it is not said to
        above = report.exceeds(result.excluded, rows) or result.excluded > nominal * (1 + TOLERANCE)
        return replace(result, broken=above)

    @property
    def worst(self) -> SourceCoverage | None:
        """The source whose true class was ruled out most often, of those with enough rows to tell."""
        return next((source for source in self.sources if source.n >= ENOUGH_ROWS), None)

    @property
    def excluded(self) -> float | None:
        """Mean share of rows for which the true class was ruled out; None if no source could be left out."""
        return float(np.mean([source.excluded for source in self.sources])) if self.sources else None

    @property
    def answered(self) -> float | None:
        """Mean share of rows that got an answer; None if no source could be left out."""
        return float(np.mean([source.answered for source in self.sources])) if self.sources else None

    @property
    def unknown(self) -> bool:
        """True if too few sources were left out, or none of their rows got an answer that could be wrong."""
        return len(self.sources) < ENOUGH_SOURCES or not self.answered

    @property
    def sentence(self) -> str:
        """The measured rate beside the nominal one, or why it is not known."""
        name, other = self.label, "fake" if self.label == "real" else "real"
        title = f"{name.capitalize()} sources never seen"
        if len(self.sources) >= ENOUGH_SOURCES and self.unknown:
            return (
                f"{title} ({len(self.sources)} left out): none of their rows got an answer, so it is not known how "
                f"often {name} would be wrongly ruled out."
            )
        if self.unknown:
            have = f"{self.stored} {name} source{'s are' if self.stored != 1 else ' is'} stored"
            if self.stored >= ENOUGH_SOURCES:
                return (
                    f"{title}: {have}, with too few images to leave some out; it is not known how often an image of "
                    f"another one is called {other}; index more images of each."
                )
            return (
                f"{title}: {have}, too few to know how often an image of another one is called {other}; "
                f"index {name} images from at least {ENOUGH_SOURCES} sources."
            )
        text = (
            f"{title} ({len(self.sources)} left out): {self.answered:.0%} of their rows got an answer; {name} was "
            f"ruled out for {self.excluded:.1%} (nominal {format_percent(self.nominal)})"
        )
        if self.worst and self.worst.excluded > 0:
            text += f", most of {self.worst.name}: {self.worst.excluded:.0%}"
        if self.broken:
            text += "; the nominal error rate does not hold for them"
        return text + "."

    @property
    def notice(self) -> str:
        """What is known of the error rate for sources that are not stored, "" if the nominal one holds for them."""
        if self.unknown:
            stored = f"stored {self.label} sources: {self.stored}"
            return f"it is not known how often {self.label} is wrongly ruled out ({stored})"
        if not self.broken:
            return ""
        at_worst = f" (at worst {self.worst.excluded:.0%})" if self.worst else ""
        return f"{self.label} is wrongly ruled out for {self.excluded:.0%} of the images{at_worst}"
