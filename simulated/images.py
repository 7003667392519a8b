"""A small simulated data set in ArtiFact's layout, with a real difference between its two classes.

It has no photograph and no image of a real generator. "Reals" are dead-leaves and 1/f scenes taken by simulated
cameras; "fakes" are scenes of the same kinds after the up-sampling of simulated generators. Both are impaired in the
same way (random crop, 200×200, JPEG quality 65-100), so that the classes differ only in how the pixels were made.
Verdicts learned from it hold for this data set only.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Plane = npt.NDArray[np.float32]  # (height, width)
RgbImage = npt.NDArray[np.float32]  # (height, width, 3), 0..1
Scene = Callable[[np.random.Generator], RgbImage]

VERSION = 1  # incremented by any change that alters a byte of an image
SIDE = 224  # pixels, before the crop
SMALLEST_CROP = 160  # pixels, as in ArtiFact
FINAL = 200  # pixels, after the crop
QUALITIES = (65, 100)  # JPEG quality, both ends included


# Scenes in linear light, independent of the label.


def leaves(rng: np.random.Generator) -> RgbImage:
    """Pointed ellipses that hide one another: the dead leaves of Lee, Mumford & Huang 2001, in autumn colours."""
    shape = rng.uniform(0.35, 0.6)
    hues = rng.choice([[0.30, 0.34, 0.10], [0.42, 0.27, 0.09], [0.20, 0.30, 0.12], [0.45, 0.38, 0.16]], 2)
    return _illuminate(_dead_leaves(rng, hues.astype(np.float32), flatness=shape, pointed=1.6, roundness=0.15), rng)


def pebbles(rng: np.random.Generator) -> RgbImage:
    """Rounded stones of every size, lit from one side."""
    shape = rng.uniform(0.65, 0.85)
    hues = rng.choice([[0.34, 0.32, 0.29], [0.28, 0.29, 0.31], [0.38, 0.31, 0.25], [0.22, 0.22, 0.23]], 2)
    return _illuminate(_dead_leaves(rng, hues.astype(np.float32), flatness=shape, pointed=1.0, roundness=0.6), rng)


def clouds(rng: np.random.Generator) -> RgbImage:
    """White over blue through a mask with a power-law spectrum (Field 1987)."""
    cover = _power_law(rng, 1.7)
    mask = _step(cover + rng.uniform(-0.4, 0.6), 0.9)[..., None]
    shade = 0.72 + 0.12 * _power_law(rng, 1.5)[..., None]
    height = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    sky = np.array([0.16, 0.29, 0.55], np.float32) * (0.75 + 0.6 * height)
    white = np.array([0.95, 0.94, 0.92], np.float32) * shade.clip(0.35, 1.1)
    return _illuminate(sky * (1 - mask) + white * mask, rng, mean=0.36)


CATEGORIES: dict[str, Scene] = {"clouds": clouds, "leaves": leaves, "pebbles": pebbles}


def _dead_leaves(
    rng: np.random.Generator, hues: RgbImage, *, flatness: float, pointed: float, roundness: float
) -> RgbImage:
    """Shapes with p(radius) ∝ radius⁻³ (scale invariance), drawn back to front at twice the size, then averaged."""
    side, count = 2 * SIDE, 900
    smallest, largest = 7.0, side / 3
    u = rng.random(count)
    radius = 1 / np.sqrt(u / smallest**2 + (1 - u) / largest**2)
    centre = rng.uniform(-0.1 * side, 1.1 * side, (count, 2))
    angle = rng.uniform(0, 2 * np.pi, count)
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    across = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** pointed * flatness
    outline = radius[:, None] * np.cos(t), radius[:, None] * across  # along and across, (count, 24) each
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    corners = np.stack([c * outline[0] - s * outline[1], s * outline[0] + c * outline[1]], -1) + centre[:, None]

    labels = Image.new("I", (side, side), 0)
    draw = ImageDraw.Draw(labels)
    for i, polygon in enumerate(corners.reshape(count, -1).tolist(), start=1):
        draw.polygon(polygon, fill=i)
    which = np.asarray(labels)  # (side, side): 0 for the ground, else the shape on top

    mix = rng.random((count + 1, 1))
    tone = np.exp(rng.normal(0, 0.45, (count + 1, 1))) * np.exp(rng.normal(0, 0.08, (count + 1, 3)))
    albedo = ((mix * hues[0] + (1 - mix) * hues[1]) * tone).astype(np.float32)
    # each shape is a little brighter on the side that faces the light
    light = rng.uniform(0, 2 * np.pi)
    slope = (roundness / np.append(side, radius)).astype(np.float32)
    offset = slope * np.append(0, centre @ [np.cos(light), np.sin(light)]).astype(np.float32)
    along = np.arange(side, dtype=np.float32)
    ramp = along * np.float32(np.cos(light)) + (along * np.float32(np.sin(light)))[:, None]
    shading = np.clip(1 + ramp * slope[which] - offset[which], 0.25, 1.75)
    fine = (albedo[which] * shading[..., None]).reshape(SIDE, 2, SIDE, 2, 3)
    image = (fine[:, 0, :, 0] + fine[:, 1, :, 0] + fine[:, 0, :, 1] + fine[:, 1, :, 1]) / 4
    return np.asarray(image * np.exp(0.18 * _power_law(rng, 1.0))[..., None], np.float32)


def _power_law(rng: np.random.Generator, exponent: float) -> Plane:
    """A Gaussian field of unit variance whose amplitude falls as frequency^-exponent."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    fall = np.hypot(fy, fx)
    fall[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32))
    field = np.fft.irfft2(white * (fall**-exponent).astype(np.float32), (SIDE, SIDE))
    return np.asarray(field / field.std(), np.float32)


def _step(x: Plane, width: float) -> Plane:
    """Smooth step from 0 to 1 around x = 0."""
    t = np.clip(x / width + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _illuminate(image: RgbImage, rng: np.random.Generator, mean: float = 0.2) -> RgbImage:
    """Apply uneven light, a random exposure and a slightly soft lens; the result is linear light."""
    along = np.linspace(-1, 1, SIDE, dtype=np.float32)
    x, y = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    lit = image * (1 + x * along + (y * along)[:, None])[..., None]
    exposure = mean * np.exp(rng.normal(0, 0.25)) / lit.mean()
    side = rng.uniform(0.08, 0.16)
    return convolve(np.clip(lit * np.float32(exposure), 0, 1), (side, 1 - 2 * side, side))


def apply_gamma(linear: RgbImage) -> RgbImage:
    """Convert linear light to display values."""
    display: RgbImage = np.clip(linear, 0, 1) ** np.float32(1 / 2.2)
    return display


def convolve(image: RgbImage, taps: tuple[float, ...]) -> RgbImage:
    """Convolve along both axes with an odd number of taps; edges are mirrored."""
    reach = len(taps) // 2
    for axis in (0, 1):
        length = image.shape[axis]
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(image.ndim)]
        padded = np.moveaxis(np.pad(image, padding, mode="reflect"), axis, 0)
        total = sum(np.float32(tap) * padded[i : i + length] for i, tap in enumerate(taps) if tap)
        image = np.moveaxis(np.asarray(total), 0, axis)
    return image


# Reals: a scene taken by a camera.


@dataclass(frozen=True)
class SimulatedCamera:
    """A Bayer sensor with noise, demosaicing and sharpening."""

    shot: float  # variance of shot noise per unit of signal (Foi et al. 2008)
    read: float  # standard deviation of read noise, in units of full scale
    corrected: bool  # demosaicing with gradient correction (Hamilton & Adams 1997) instead of bilinear
    sharpening: float  # amount of the unsharp mask

    def __call__(self, scene: RgbImage, rng: np.random.Generator) -> RgbImage:
        raw = np.take_along_axis(scene, BAYER[..., None], 2)[..., 0]
        gain = np.exp(rng.normal(0, 0.25))  # ISO setting
        deviation = np.sqrt(gain * self.shot * raw + (gain * self.read) ** 2).astype(np.float32)
        raw = raw + deviation * rng.standard_normal(raw.shape, np.float32)
        return sharpen(apply_gamma(demosaic(raw, self.corrected)), self.sharpening)


BAYER = np.tile([[0, 1], [1, 2]], (SIDE // 2, SIDE // 2))  # colour channel of each pixel of the sensor


def demosaic(raw: Plane, corrected: bool) -> RgbImage:
    """Interpolate three channels from one per pixel: green first, then the differences of red and blue to it."""
    near = _neighbor_mean(raw, 1)
    estimate = near + (raw - _neighbor_mean(raw, 2)) / np.float32(2) if corrected else near
    green: Plane = np.where(BAYER == 1, raw, estimate).astype(np.float32)
    sites = BAYER[..., None] == np.arange(3)
    difference = np.where(sites, (raw - green * corrected)[..., None], 0).astype(np.float32)
    image = convolve(difference, (0.5, 1, 0.5)) + (green * corrected)[..., None]
    image[..., 1] = green
    return image


def _neighbor_mean(plane: Plane, distance: int) -> Plane:
    """Mean of the four pixels at a distance: up, down, left and right."""
    d, (h, w) = distance, plane.shape
    padded = np.pad(plane, d, mode="reflect")
    across, down = padded[d : d + h], padded[:, d : d + w]
    return np.asarray((across[:, :w] + across[:, 2 * d :] + down[:h] + down[2 * d :]) / 4, np.float32)


def sharpen(image: RgbImage, amount: float) -> RgbImage:
    """Apply an unsharp mask."""
    return image + np.float32(amount) * (image - convolve(image, (0.25, 0.5, 0.25)))


# Fakes: a scene after up-sampling.


@dataclass(frozen=True)
class SimulatedGenerator:
    """The last layers of an image generator: up-sampling, noise injection and sharpening.

    An up-sampling layer is a transposed convolution with stride 2: zeros between the pixels, then `taps`. Taps with
    unequal weight for even and odd pixels make a checkerboard (Odena et al. 2016). All taps leave copies of the low
    frequencies around the high ones, in a pattern of their own (Zhang et al. 2019, Durall et al. 2020).
    """

    taps: tuple[float, ...]
    layers: int
    share: float  # of the output that passed the layers; the rest bypassed them (skip connection)
    noise: float  # standard deviation in units of full scale, injected before the last layer
    grain: float  # standard deviation in units of full scale, added after the last layer
    sharpening: float

    def __call__(self, scene: RgbImage, rng: np.random.Generator) -> RgbImage:
        display = apply_gamma(scene)
        generated = display
        for _ in range(self.layers):
            h, w, _ = generated.shape
            generated = np.asarray(generated.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)), np.float32)
        for layer in range(self.layers):
            if layer == self.layers - 1:
                generated = generated + np.float32(self.noise) * rng.standard_normal(generated.shape, np.float32)
            generated = upsample(generated, self.taps)
        image = display + np.float32(self.share) * (generated - display)
        image = sharpen(image, self.sharpening)
        return np.asarray(image + np.float32(self.grain) * rng.standard_normal(image.shape, np.float32))


def upsample(image: RgbImage, taps: tuple[float, ...]) -> RgbImage:
    """Double the height and the width: insert zeros between the pixels, then convolve with `taps`."""
    h, w, _ = image.shape
    sparse = np.zeros((2 * h, 2 * w, 3), np.float32)
    sparse[::2, ::2] = image
    return convolve(sparse, taps)


BILINEAR = (0.25, 0.75, 0.75, 0.25, 0.0)
NEAREST = (0.0, 1.0, 1.0, 0.0, 0.0)


def uneven_taps(e: float) -> tuple[float, ...]:
    """Bilinear taps with a weight difference of `e` between even and odd pixels, which makes a checkerboard."""
    return (0.25 * (1 + e), 0.75 * (1 - e), 0.75 * (1 + e), 0.25 * (1 - e), 0.0)


@dataclass(frozen=True)
class SimulatedSource:
    """A folder of the data set with the process that makes its images."""

    name: str
    target: int
    process: SimulatedCamera | SimulatedGenerator


SOURCES = (
    SimulatedSource("sim_camera_bilinear", 0, SimulatedCamera(4e-4, 0.004, False, 0.5)),
    SimulatedSource("sim_camera_gradient", 0, SimulatedCamera(2e-4, 0.003, True, 0.2)),
    SimulatedSource("sim_camera_phone", 0, SimulatedCamera(6e-4, 0.005, True, 0.6)),
    SimulatedSource("sim_transposed", 1, SimulatedGenerator(uneven_taps(0.015), 1, 0.6, 0.02, 0.01, 0.6)),
    SimulatedSource("sim_nearest", 2, SimulatedGenerator(NEAREST, 1, 0.6, 0.02, 0.01, 0.6)),
    SimulatedSource("sim_bilinear", 4, SimulatedGenerator(BILINEAR, 1, 0.6, 0.02, 0.01, 0.8)),
    SimulatedSource("sim_stacked", 6, SimulatedGenerator(uneven_taps(0.01), 2, 0.5, 0.02, 0.01, 0.6)),
)


def impair(image: RgbImage, rng: np.random.Generator) -> bytes:
    """Apply the impairment of every image: a random crop, 200 x 200 pixels, JPEG."""
    crop = int(rng.integers(SMALLEST_CROP, SIDE + 1))
    x, y = rng.integers(0, SIDE - crop + 1, 2)
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    resized = Image.fromarray(pixels[y : y + crop, x : x + crop]).resize((FINAL, FINAL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)))
    return buffer.getvalue()


def simulated(source: int, number: int, seed: int = 0) -> bytes:
    """Return one image of one source as JPEG; the same arguments give the same bytes."""
    rng = np.random.default_rng([VERSION, seed, source, number])
    scene = list(CATEGORIES.values())[number % len(CATEGORIES)](rng)
    return impair(SOURCES[source].process(scene, rng), rng)


def write_sample(folder: Path, *, images_per_source: int = 90, seed: int = 0) -> list[Path]:
    """Write the data set, one folder per source with its metadata.csv; returns the folders.

    Every source has every category equally often, so that the category does not predict the label.
    """
    names = list(CATEGORIES)
    folders = []
    for i, source in enumerate(SOURCES):
        lines = ["filename,image_path,target,category"]
        for number in range(images_per_source):
            category, name = names[number % len(names)], f"img{number:06d}.jpg"
            path = folder / source.name / "images" / category / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simulated(i, number, seed))
            lines.append(f"{name},images/{category}/{name},{source.target},{category}")
        (folder / source.name / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        folders.append(folder / source.name)
    return folders
