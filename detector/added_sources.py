"""Sources that were added to the bank after training: what a few of their images say about a score.

Nothing is trained and nothing is stored but the rows, so that removing them restores every score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import FAKE, REAL, Mask, Names, Vectors
from ..store.shard import hash_keys
from ..store.snapshot import Snapshot
from .calibration import Calibration
from .evidence import Bank
from .head import LEFT_OUT, Head
from .split import NONE

MIN_EXAMPLES = 3  # images of an added source from which on it counts
MAX_EXAMPLES = 200  # images of an added source that are used; with more, train again
BACKGROUND = 4000  # stored rows of each class that added sources are compared with
MIN_BACKGROUND = 50
RIDGE = 3.0  # added to the covariance, in units of its mean eigenvalue
SHARE = 0.05  # weight of an added source among all images of its class; a larger one costs the other sources more
PRIOR_ROWS = 20  # weight of the background's variance beside that of the examples, in rows
CLAIM = 0.9  # quantile of the known generators' rows beyond which an image is attributed to an added one
BUDGET = 0.2  # share of the nominal error rate by which all added sources together may rule out a class more often
PROBED = 16  # rows of a source whose keys are looked up in the split before all of them are

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Direction:
    """Projection on the direction from a background class to the examples, and its log-likelihood ratio.

    The direction is Fisher's with a shrunken covariance; both sides are normal of equal variance. The mean of the
    examples is that of their leave-one-out projections.
    """

    examples: Vectors  # (examples, dim) inverse covariance times examples minus the background's mean
    mean: npt.NDArray[np.float32]  # (dim,) of the background
    digests: npt.NDArray[np.uint64]  # (examples, 2)
    center: float = 0.0
    slope: float = 1.0
    limit: float = 0.0  # log-likelihood ratio that the share CLAIM of the background does not reach
    background: Floats = field(default_factory=lambda: np.zeros(0))  # (rows,) its log-likelihood ratios, ascending

    @classmethod
    def fit(
        cls, examples: Vectors, digests: npt.NDArray[np.void], background: Vectors, precision: Vectors
    ) -> Direction | None:
        """Fit on (examples, dim) and (rows, dim) unit vectors and (dim, dim); None if the two cannot be told apart."""
        mean = background.mean(0)
        plain = cls((examples - mean) @ precision, mean, _halves(digests))
        own = plain.project(examples, digests, np.eye(len(examples), dtype=bool))  # digests may be unknown
        other = plain.project(background)
        own = own[np.isfinite(own)]
        if len(own) < MIN_EXAMPLES or own.mean() <= other.mean():
            return None
        variance = (PRIOR_ROWS * other.var() + ((own - own.mean()) ** 2).sum()) / (PRIOR_ROWS + len(own) - 1)
        center, slope = (own.mean() + other.mean()) / 2, (own.mean() - other.mean()) / variance
        ratios = np.sort((other - center) * slope)
        limit = float(np.quantile(ratios, CLAIM))
        return cls(plain.examples, mean, plain.digests, float(center), float(slope), limit, ratios)

    def project(
        self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None, left_out: Mask | None = None
    ) -> Floats:
        """(n,) mean product with the examples, without those of the same file; NaN if none is left.

        Parameters
        ----------
        left_out : (n, examples) other examples that do not count for a vector
        """
        products = ((vectors - self.mean) @ self.examples.T).astype(np.float64)
        counted = np.ones(products.shape, bool) if left_out is None else ~left_out
        if digests is not None:
            queried = _halves(digests)
            same = np.asarray((queried[:, None] == self.digests[None]).all(2))
            counted &= ~(same & np.asarray(queried.any(1))[:, None])
        left = counted.sum(1)
        return np.where(left > 0, (products * counted).sum(1) / np.maximum(left, 1), np.nan)

    def ratio(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> Floats:
        """(n,) log-likelihood ratio of the examples' source against the background; -inf if no example is left."""
        ratio = self.slope * (self.project(vectors, digests) - self.center)
        return np.where(np.isfinite(ratio), ratio, -np.inf)

    def p_value(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> Floats:
        """(n,) share of the background that resembles the examples as much, where the image is one more row of it."""
        beyond = len(self.background) - np.searchsorted(self.background, self.ratio(vectors, digests))
        return np.asarray((beyond + 1) / (len(self.background) + 1))


@dataclass(frozen=True)
class AddedSource:
    """A source that the head has never seen."""

    name: str
    generator: str  # "" for a real source
    label: int
    against_other: Direction  # the stored rows of the other class
    against_own: Direction | None  # those of its own class, for attribution


@dataclass(frozen=True)
class AddedSources:
    """The sources of a bank that have no row in the head's split. Make it with `from_bank`."""

    sources: tuple[AddedSource, ...] = ()

    @classmethod
    def from_bank(cls, bank: Bank, head: Head) -> AddedSources:
        """Fit each added source in closed form; the stored rows of the split are read only if there is one.

        The rows are chosen by the hashes of their keys, so that the same rows give the same scores in any order.
        """
        snapshot = bank.snapshot
        added = _new_sources(bank, head)
        if not added:
            return cls()
        keys = snapshot.column("keys")
        known = bank.members & ~np.isin(bank.sources, added)
        known[known] = head.split.parts_of(keys[known]) != NONE
        rows = {label: _first(keys, known & (bank.labels == label), BACKGROUND) for label in (REAL, FAKE)}
        if min(map(len, rows.values())) < MIN_BACKGROUND:
            return cls()
        background = {label: snapshot.vectors(rows[label]) for label in rows}
        codes = {label: bank.sources[rows[label]] for label in rows}
        precisions = shrunken_precisions(background, codes)
        sources = []
        for code in added:
            for label in (REAL, FAKE):
                chosen = _first(keys, bank.members & (bank.sources == code) & (bank.labels == label), MAX_EXAMPLES)
                if len(chosen) < MIN_EXAMPLES:
                    continue
                examples, digests = snapshot.vectors(chosen), snapshot.column("digests")[chosen]
                other, own = (
                    Direction.fit(examples, digests, background[of], precisions[of])
                    for of in (FAKE + REAL - label, label)
                )
                if other is not None:
                    name = bank.source_names[code]
                    sources.append(AddedSource(name, _generator(snapshot, chosen, name, label), label, other, own))
        return cls(tuple(sources))

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(dict.fromkeys(source.name for source in self.sources))

    def adjust(
        self, scores: Floats, vectors: Vectors, digests: npt.NDArray[np.void] | None = None, *, without: str = ""
    ) -> tuple[Floats, Floats]:
        """(n,) scores moved towards the label of the added sources that the images resemble, and by how much.

        Each class is a mixture of what the head knows and of the added sources, with the weight `SHARE` each. The
        score of an image that resembles none of them hardly moves: by ln(1 + SHARE · ratio / exp(score)).

        Parameters
        ----------
        scores : (n,) log-likelihood ratios, above 0 leans fake
        vectors : (n, dim) unit vectors
        digests : (n,) V16 of the files, if known: an added image says nothing about itself
        without : name of a source that is left out
        """
        moved = np.array(scores, np.float64)
        for source in self.sources:
            if source.name != without:
                ratio = source.against_other.ratio(vectors, digests) + np.log(SHARE)
                moved = np.logaddexp(moved, ratio) if source.label == FAKE else -np.logaddexp(-moved, ratio)
        return moved, moved - scores

    def prediction_sets(
        self,
        calibration: Calibration,
        scores: Floats,
        moved: Floats,
        vectors: Vectors,
        digests: npt.NDArray[np.void] | None,
        error: float,
        *,
        without: str = "",
    ) -> Mask:
        """(n, 2) whether real and whether fake cannot be ruled out at a nominal error rate.

        The calibration rows did not have this signal. A moved score therefore only makes a class possible again. An
        added source rules out the other class by itself, if so few of its stored rows resemble it as much that the true
        class is ruled out for at most `BUDGET` more images than without added sources.

        Parameters
        ----------
        scores, moved : (n,) log-likelihood ratios before and after `adjust`
        error : nominal error rate
        without : name of a source that is left out
        """
        possible = calibration.prediction_sets(scores, error) | calibration.prediction_sets(moved, error)
        for source in self.sources:
            if source.name != without:
                beyond = source.against_other.p_value(vectors, digests) <= BUDGET * error / len(self.sources)
                possible[beyond, REAL if source.label == FAKE else FAKE] = False
        return possible

    def resembled(self, vector: Vectors, digest: npt.NDArray[np.void] | None, label: int) -> str:
        """Name of the added source of a label that a (1, dim) vector resembles most, "" if none more than chance."""
        ratios = {
            source.name: float(source.against_other.ratio(vector, digest)[0]) + float(np.log(SHARE))
            for source in self.sources
            if source.label == label
        }
        nearest = max(ratios, key=lambda name: ratios[name], default="")
        return nearest if nearest and ratios[nearest] > 0 else ""

    def generators(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> list[str]:
        """The added generator of each of (n, dim) vectors, "" where none is clearly beyond the known generators."""
        best, names = np.zeros(len(vectors)), [""] * len(vectors)
        for source in self.sources:
            if source.label == FAKE and source.against_own is not None:
                beyond = source.against_own.ratio(vectors, digests) - source.against_own.limit
                for query in np.flatnonzero(beyond > best).tolist():
                    best[query], names[query] = beyond[query], source.generator
        return names


def shrunken_precisions(
    background: dict[int, Vectors], sources: dict[int, npt.NDArray[np.int64]]
) -> dict[int, Vectors]:
    """(dim, dim) inverse covariances by label, shrunken towards the identity (Friedman 1989).

    Each is that of the mean of two covariances, within the sources of both classes and of the label's rows in all: a
    direction in which known sources of a class differ says little about a new source of the other class.
    """
    from scipy.linalg import inv

    within = np.mean([_covariance(background[label], sources[label]) for label in background], axis=0)
    precisions = {}
    for label, vectors in background.items():
        covariance = (within + _covariance(vectors, np.zeros(len(vectors)))) / 2
        covariance[np.diag_indices_from(covariance)] += RIDGE * max(np.trace(covariance) / len(covariance), 1e-12)
        precisions[label] = np.asarray(inv(covariance), np.float32)
    return precisions


def _covariance(vectors: Vectors, groups: npt.NDArray[Any]) -> Floats:
    """(dim, dim) covariance of (rows, dim) vectors about the means of their groups."""
    centered = vectors.copy()
    for group in np.unique(groups):
        centered[groups == group] -= vectors[groups == group].mean(0)
    return np.asarray(centered.T @ centered, np.float64) / len(centered)


def _new_sources(bank: Bank, head: Head) -> list[int]:
    """Codes of the labelled sources that the head's training neither used nor left out on purpose."""
    left_out = {*head.options.get(LEFT_OUT, ())}
    labelled = np.flatnonzero(bank.members & (bank.labels >= 0))
    by_source = labelled[np.argsort(bank.sources[labelled], kind="stable")]
    codes, starts = np.unique(bank.sources[by_source], return_index=True)
    keys, new = bank.snapshot.column("keys"), []
    for code, rows in zip(codes.tolist(), np.split(by_source, starts[1:]), strict=True):
        if bank.source_names[code] in left_out:
            continue
        probed = rows[:: max(len(rows) // PROBED, 1)]  # so that not every key of the store is hashed
        if all((head.split.parts_of(keys[part]) == NONE).all() for part in (probed, rows)):
            new.append(code)
    return new


def _first(keys: Names, where: Mask, most: int) -> npt.NDArray[np.int64]:
    """Positions of the `most` rows whose keys have the smallest hashes, in the order of these."""
    rows = np.flatnonzero(where)
    return rows[np.argsort(hash_keys(keys[rows]), kind="stable")[:most]]


def _generator(snapshot: Snapshot, rows: npt.NDArray[np.int64], name: str, label: int) -> str:
    names, counts = np.unique(snapshot.column("generators")[rows].tolist(), return_counts=True)
    return "" if label == REAL else str(names[counts.argmax()]) or name


def _halves(digests: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(np.uint64).reshape(len(digests), 2)
