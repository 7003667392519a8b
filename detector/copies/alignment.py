"""Decide whether two pictures are the same one: re-encoded, resized, mirrored, or one a part of the other.

A coarse search over windows finds the part that the pictures have in common, Gauss-Newton steps refine it (Lucas and
Kanade, IJCAI 1981), and the worst block of the difference decides. A mean over the picture, as a perceptual hash takes
it, would not notice an edited face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .picture import COARSE_SIDE, LUMA, SIDE, Grid, Picture

WINDOW_SIDE = 16  # pixels at which windows are compared in the coarse search
PLACES = (0, 0.25, 0.5, 0.75, 1)  # of a smaller window, from the top or left to the bottom or right
WINDOWS = [(1.0, 0.0)] + [(size, (1 - size) * place) for size in (0.9, 0.8) for place in PLACES]  # size and start
MIN_WINDOW, MAX_WINDOW = 0.7, 1.02  # sizes that the refinement may reach, as shares of the whole side
MIN_DETAIL = 4.0  # levels, standard deviation of a block beyond a smooth gradient: any two clear skies are alike
MIN_DETAILED = 1 / 8  # share of the blocks with that; 0.2 % of stored pictures have less, as has a logo on white
GRADIENT_DEGREE = 3  # of the polynomial that is taken for a smooth gradient
MIN_COARSE = 0.75  # correlation of the best window and the other picture; copies have at least 0.85
MIN_FINE = 0.95  # the same after refinement; copies have at least 0.97, photographs with a swapped face under 0.93
STEPS, LARGEST_STEP, SMALLEST_STEP = 8, 0.03, 5e-4  # of the refinement; steps in shares of a side
DAMPING = 1e-3  # of the refinement's normal equations, where a picture is flat
BLOCK = 8  # pixels: side of the blocks whose difference is taken, an eighth of the picture's
NOISE, SHIFT = 4.0, 0.7  # what compression (levels) and inexact alignment (pixels) may change in a copy
MAX_DIFFERENCE = 1.6  # of the worst block, in units of that; copies reach 1.5, swapped faces begin at 1.8
GAIN_LIMITS = (0.6, 1.6)  # contrast of a copy, as a factor
FLAT = 25.0  # variance in levels below which no contrast can be measured


@dataclass(frozen=True)
class Window:
    """A part of a picture, in shares of its height and width."""

    height: float
    top: float
    width: float
    left: float


@dataclass(frozen=True)
class SamePicture:
    """Two pictures were found to be the same one."""

    mirrored: bool
    difference: float  # of the worst block, 0 to MAX_DIFFERENCE


def same_picture(stored: Picture, queried: Picture) -> SamePicture | None:
    """Compare two pictures; None if they are not the same one, or if one has too little detail to tell.

    One may be a part of the other, at least 70 % of its height and width, and mirrored.
    """
    if min(detailed_share(stored), detailed_share(queried)) < MIN_DETAILED:
        return None
    tries = (_best_window(stored, queried), _best_window(queried, stored))
    stored_is_whole = tries[0][0] >= tries[1][0]
    correlation, window, mirrored = tries[0 if stored_is_whole else 1]
    if correlation < MIN_COARSE:
        return None
    whole, part = (stored, queried) if stored_is_whole else (queried, stored)
    part = part.mirrored() if mirrored else part
    window = _refine(whole.brightness, part.brightness, window)
    crop, other = _smoothed(_cut(whole.color, window)), _smoothed(part.color)
    if _correlation(crop @ LUMA, other @ LUMA) < MIN_FINE:
        return None
    difference = worst_block(crop, other)
    return SamePicture(mirrored, difference) if difference <= MAX_DIFFERENCE else None


def detailed_share(picture: Picture) -> float:
    """Share of the blocks of a picture that show more than the smooth gradient that fits its brightness best."""
    brightness = picture.brightness.reshape(-1)
    rest = brightness - _GRADIENTS @ (_GRADIENTS.T @ brightness)
    blocks = rest.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
    return float((blocks.std((1, 3)) >= MIN_DETAIL).mean())


def worst_block(first: Grid, second: Grid) -> float:
    """The largest difference of a block of two aligned pictures, in units of what copying may change.

    Parameters
    ----------
    first, second : (height, width, 3); a change of brightness or contrast of the whole picture does not count
    """
    squares = np.zeros(first.shape[:2], np.float32)
    for channel in range(3):
        a, b = first[..., channel], second[..., channel]
        a, b = a - a.mean(), b - b.mean()
        variance = float((a * a).mean())
        gain = np.clip(float((a * b).mean()) / variance, *GAIN_LIMITS) if variance > FLAT else 1.0
        squares += (b - gain * a) ** 2 / 3
    slopes = np.gradient(second, axis=(0, 1))
    steepness = sum((slope**2).mean(2) for slope in slopes)
    allowed = NOISE**2 + SHIFT**2 * _block_means(steepness)
    return float(np.sqrt((_block_means(squares) / allowed).max()))


def _best_window(whole: Picture, part: Picture) -> tuple[float, Window, bool]:
    """The window of one picture that is most like all of the other: correlation, window, and whether it is mirrored."""
    n = len(WINDOWS)
    cut = _SAMPLING @ whole.coarse @ _SAMPLING.T  # every window's rows by every window's columns
    windows = np.asarray(cut.reshape(n, WINDOW_SIDE, n, WINDOW_SIDE).transpose(0, 2, 1, 3), np.float32)
    factor = COARSE_SIDE // WINDOW_SIDE
    small = np.asarray(part.coarse.reshape(WINDOW_SIDE, factor, WINDOW_SIDE, factor).mean((1, 3)), np.float32)
    both: Grid = np.stack([small.reshape(-1), small[:, ::-1].reshape(-1)])
    correlations = _standardized(windows.reshape(n * n, -1)) @ _standardized(both).T
    best, mirrored = divmod(int(correlations.argmax()), 2)
    (height, top), (width, left) = WINDOWS[best // n], WINDOWS[best % n]
    return float(correlations[best, mirrored]), Window(height, top, width, left), bool(mirrored)


def _refine(whole: Grid, part: Grid, window: Window) -> Window:
    """Move and resize the window until it fits, with any brightness and contrast."""
    along = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE - 0.5
    height, middle = window.height, window.top + window.height / 2
    width, centre = window.width, window.left + window.width / 2
    for _ in range(STEPS):
        cut = _cut(whole, Window(height, middle - height / 2, width, centre - width / 2))
        down, right = np.gradient(cut)
        down, right = down * (SIDE / height), right * (SIDE / width)
        columns = (down * along[:, None], down, right * along, right, cut, np.ones_like(cut))
        jacobian = np.stack(columns, -1).reshape(-1, len(columns))
        normal = (jacobian.T @ jacobian).astype(np.float64)
        normal[range(4), range(4)] += DAMPING * max(float(np.trace(normal[:4, :4])) / 4, 1.0)
        normal[range(4, 6), range(4, 6)] += DAMPING  # a black picture has no contrast
        step = np.linalg.solve(normal, (jacobian.T @ (part - cut).reshape(-1)).astype(np.float64))[:4]
        step = np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        height, width = np.clip([height + step[0], width + step[2]], MIN_WINDOW, MAX_WINDOW).tolist()
        middle, centre = middle + float(step[1]), centre + float(step[3])
        if np.abs(step).max() < SMALLEST_STEP:
            break
    return Window(height, middle - height / 2, width, centre - width / 2)


def _cut(image: Grid, window: Window) -> Grid:
    """Resample a window of (SIDE, SIDE) or (SIDE, SIDE, 3) to the size of the image."""
    places = (np.arange(SIDE) + 0.5) / SIDE
    rows = _interpolation(len(image), window.top + window.height * places)
    columns = _interpolation(len(image), window.left + window.width * places)
    if image.ndim == 2:
        return np.asarray(rows @ image @ columns.T)
    return np.stack([rows @ image[..., channel] @ columns.T for channel in range(3)], -1)


def _interpolation(size: int, places: npt.NDArray[np.float64]) -> Grid:
    """(places, size) weights of linear interpolation between pixel centres; outside, the nearest pixel counts."""
    position = np.clip(places * size - 0.5, 0, size - 1)
    before = np.minimum(position.astype(np.int64), size - 2)
    weights, rows = np.zeros((len(places), size), np.float32), np.arange(len(places))
    weights[rows, before] = 1 - (position - before)
    weights[rows, before + 1] = position - before
    return weights


def _window_sampling() -> Grid:
    """(windows x WINDOW_SIDE, COARSE_SIDE) weights that average each window to WINDOW_SIDE pixels."""
    points = (np.arange(4 * WINDOW_SIDE) + 0.5) / (4 * WINDOW_SIDE)
    weights = [_interpolation(COARSE_SIDE, start + size * points) for size, start in WINDOWS]
    return np.concatenate([of_window.reshape(WINDOW_SIDE, 4, COARSE_SIDE).mean(1) for of_window in weights])


def _gradients() -> Grid:
    """(SIDE x SIDE, terms) orthonormal polynomials in the two coordinates."""
    down, right = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    powers = [(i, j) for i in range(GRADIENT_DEGREE + 1) for j in range(GRADIENT_DEGREE + 1 - i)]
    terms = np.stack([down**i * right**j for i, j in powers], -1).reshape(SIDE * SIDE, -1)
    return np.asarray(np.linalg.qr(terms)[0], np.float32)


def _smoothed(image: Grid) -> Grid:
    """Average each pixel with its neighbours, with weights 1, 2, 1 in both directions."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16)


def _block_means(values: Grid) -> Grid:
    """Means of all blocks of BLOCK x BLOCK pixels, one for each position."""
    sums = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    blocks = sums[BLOCK:, BLOCK:] - sums[:-BLOCK, BLOCK:] - sums[BLOCK:, :-BLOCK] + sums[:-BLOCK, :-BLOCK]
    return np.asarray(blocks / BLOCK**2, np.float32)


def _standardized(rows: Grid) -> Grid:
    """Rows with mean 0 and length 1, so that their products are correlations."""
    rows = rows - rows.mean(-1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6))


def _correlation(first: Grid, second: Grid) -> float:
    return float(_standardized(first.reshape(1, -1))[0] @ _standardized(second.reshape(1, -1))[0])


_SAMPLING = _window_sampling()
_GRADIENTS = _gradients()
