"""A small simulated data set in ArtiFact's layout, so that a fresh clone has something true to find.

Nothing here is a photograph and nothing comes from a real generator. "Reals" are dead-leaves and 1/f scenes seen by
simulated cameras; "fakes" are scenes of the same kinds that went through the up-sampling of simulated generators.
Both then go through one impairment law (random crop, 200×200, JPEG quality 65-100), so that what is left to find is
how the pixels were made. Verdicts learned from it hold for it alone.
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
Picture = npt.NDArray[np.float32]  # (height, width, 3), 0..1
Scene = Callable[[np.random.Generator], Picture]

VERSION = 1  # of the pictures: a change that alters a byte of them raises it
SIDE = 224  # pixels of a whole picture, before the crop
SMALLEST_CROP = 160  # pixels: ArtiFact's own law
FINAL = 200
QUALITIES = (65, 100)  # JPEG quality, both ends included


# Scenes: what is to be seen, in linear light. They know nothing of labels.


def leaves(rng: np.random.Generator) -> Picture:
    """Pointed ellipses that hide one another: the dead leaves of Lee, Mumford & Huang 2001, in autumn colours."""
    shape = rng.uniform(0.35, 0.6)
    hues = rng.choice([[0.30, 0.34, 0.10], [0.42, 0.27, 0.09], [0.20, 0.30, 0.12], [0.45, 0.38, 0.16]], 2)
    return _lit(_dead_leaves(rng, hues.astype(np.float32), flatness=shape, pointed=1.6, roundness=0.15), rng)


def pebbles(rng: np.random.Generator) -> Picture:
    """Rounded stones of every size, lit from one side."""
    shape = rng.uniform(0.65, 0.85)
    hues = rng.choice([[0.34, 0.32, 0.29], [0.28, 0.29, 0.31], [0.38, 0.31, 0.25], [0.22, 0.22, 0.23]], 2)
    return _lit(_dead_leaves(rng, hues.astype(np.float32), flatness=shape, pointed=1.0, roundness=0.6), rng)


def clouds(rng: np.random.Generator) -> Picture:
    """White over blue through a mask with a power-law spectrum (Field 1987)."""
    cover = _power_law(rng, 1.7)
    mask = _step(cover + rng.uniform(-0.4, 0.6), 0.9)[..., None]
    shade = 0.72 + 0.12 * _power_law(rng, 1.5)[..., None]
    height = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    sky = np.array([0.16, 0.29, 0.55], np.float32) * (0.75 + 0.6 * height)
    white = np.array([0.95, 0.94, 0.92], np.float32) * shade.clip(0.35, 1.1)
    return _lit(sky * (1 - mask) + white * mask, rng, mean=0.36)


CATEGORIES: dict[str, Scene] = {"clouds": clouds, "leaves": leaves, "pebbles": pebbles}


def _dead_leaves(
    rng: np.random.Generator, hues: Picture, *, flatness: float, pointed: float, roundness: float
) -> Picture:
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
    picture = (fine[:, 0, :, 0] + fine[:, 1, :, 0] + fine[:, 0, :, 1] + fine[:, 1, :, 1]) / 4
    return np.asarray(picture * np.exp(0.18 * _power_law(rng, 1.0))[..., None], np.float32)


def _power_law(rng: np.random.Generator, exponent: float) -> Plane:
    """A Gaussian field of unit variance whose amplitude falls as frequency^-exponent."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    fall = np.hypot(fy, fx)
    fall[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32))
    field = np.fft.irfft2(white * (fall**-exponent).astype(np.float32), (SIDE, SIDE))
    return np.asarray(field / field.std(), np.float32)


def _step(x: Plane, width: float) -> Plane:
    """A soft step from 0 to 1 around x = 0."""
    t = np.clip(x / width + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _lit(picture: Picture, rng: np.random.Generator, mean: float = 0.2) -> Picture:
    """Uneven light, a random exposure, and a slightly soft lens; still linear."""
    along = np.linspace(-1, 1, SIDE, dtype=np.float32)
    x, y = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    lit = picture * (1 + x * along + (y * along)[:, None])[..., None]
    exposure = mean * np.exp(rng.normal(0, 0.25)) / lit.mean()
    side = rng.uniform(0.08, 0.16)
    return filtered(np.clip(lit * np.float32(exposure), 0, 1), (side, 1 - 2 * side, side))


def displayed(linear: Picture) -> Picture:
    """Linear light to display values."""
    shown: Picture = np.clip(linear, 0, 1) ** np.float32(1 / 2.2)
    return shown


def filtered(picture: Picture, taps: tuple[float, ...]) -> Picture:
    """Along both axes with the same odd number of taps; edges are mirrored."""
    reach = len(taps) // 2
    for axis in (0, 1):
        length = picture.shape[axis]
        around = [(reach, reach) if a == axis else (0, 0) for a in range(picture.ndim)]
        wide = np.moveaxis(np.pad(picture, around, mode="reflect"), axis, 0)
        total = sum(np.float32(tap) * wide[i : i + length] for i, tap in enumerate(taps) if tap)
        picture = np.moveaxis(np.asarray(total), 0, axis)
    return picture


# Reals: a scene, photographed.


@dataclass(frozen=True)
class SimulatedCamera:
    """A Bayer sensor with its noise, its demosaicing and its own taste in sharpening."""

    shot: float  # variance a unit of signal (Foi et al. 2008)
    read: float  # standard deviation, of full scale
    corrected: bool  # demosaicing corrected by gradients (Hamilton & Adams 1997) rather than bilinear
    sharpening: float  # of an unsharp mask, after development

    def __call__(self, scene: Picture, rng: np.random.Generator) -> Picture:
        raw = np.take_along_axis(scene, BAYER[..., None], 2)[..., 0]
        gain = np.exp(rng.normal(0, 0.25))  # of the ISO setting
        deviation = np.sqrt(gain * self.shot * raw + (gain * self.read) ** 2).astype(np.float32)
        raw = raw + deviation * rng.standard_normal(raw.shape, np.float32)
        return sharpened(displayed(demosaiced(raw, self.corrected)), self.sharpening)


BAYER = np.tile([[0, 1], [1, 2]], (SIDE // 2, SIDE // 2))  # which colour each pixel of the sensor sees


def demosaiced(raw: Plane, corrected: bool) -> Picture:
    """Full colour from one colour a pixel: green from its neighbours, then red and blue by their difference to it."""
    near = _neighbours(raw, 1)
    estimate = near + (raw - _neighbours(raw, 2)) / np.float32(2) if corrected else near
    green: Plane = np.where(BAYER == 1, raw, estimate).astype(np.float32)
    sites = BAYER[..., None] == np.arange(3)
    difference = np.where(sites, (raw - green * corrected)[..., None], 0).astype(np.float32)
    picture = filtered(difference, (0.5, 1, 0.5)) + (green * corrected)[..., None]
    picture[..., 1] = green
    return picture


def _neighbours(plane: Plane, distance: int) -> Plane:
    """The mean of the four pixels at this distance, up, down, left and right."""
    d, (h, w) = distance, plane.shape
    wide = np.pad(plane, d, mode="reflect")
    across, down = wide[d : d + h], wide[:, d : d + w]
    return np.asarray((across[:, :w] + across[:, 2 * d :] + down[:h] + down[2 * d :]) / 4, np.float32)


def sharpened(picture: Picture, amount: float) -> Picture:
    """An unsharp mask."""
    return picture + np.float32(amount) * (picture - filtered(picture, (0.25, 0.5, 0.25)))


# Fakes: a scene, up-sampled.


@dataclass(frozen=True)
class SimulatedGenerator:
    """The last layers of an image generator: up-sampling, noise injection, and the contrast a discriminator asks for.

    An up-sampling layer is a transposed convolution with stride 2: zeros between the pixels, then `taps`. Taps that
    give even and odd pixels unequal weight make a checkerboard (Odena et al. 2016); all leave copies of the low
    frequencies around the high ones, each in its own way (Zhang et al. 2019, Durall et al. 2020).
    """

    taps: tuple[float, ...]
    layers: int
    share: float  # of the picture that went through them; the rest came over a skip connection
    noise: float  # standard deviation, of full scale, injected before the last layer
    grain: float  # standard deviation, of full scale, added after it
    sharpening: float

    def __call__(self, scene: Picture, rng: np.random.Generator) -> Picture:
        shown = displayed(scene)
        made = shown
        for _ in range(self.layers):
            h, w, _ = made.shape
            made = np.asarray(made.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)), np.float32)
        for layer in range(self.layers):
            if layer == self.layers - 1:
                made = made + np.float32(self.noise) * rng.standard_normal(made.shape, np.float32)
            made = upsampled(made, self.taps)
        picture = shown + np.float32(self.share) * (made - shown)
        picture = sharpened(picture, self.sharpening)
        return np.asarray(picture + np.float32(self.grain) * rng.standard_normal(picture.shape, np.float32))


def upsampled(picture: Picture, taps: tuple[float, ...]) -> Picture:
    """Twice as high and wide: zeros between the pixels, then a convolution with `taps` along both axes."""
    h, w, _ = picture.shape
    sparse = np.zeros((2 * h, 2 * w, 3), np.float32)
    sparse[::2, ::2] = picture
    return filtered(sparse, taps)


BILINEAR = (0.25, 0.75, 0.75, 0.25, 0.0)
NEAREST = (0.0, 1.0, 1.0, 0.0, 0.0)


def uneven(e: float) -> tuple[float, ...]:
    """Bilinear taps whose even and odd pixels differ in weight by `e`: a checkerboard."""
    return (0.25 * (1 + e), 0.75 * (1 - e), 0.75 * (1 + e), 0.25 * (1 - e), 0.0)


@dataclass(frozen=True)
class SimulatedSource:
    """A folder of the data set and what makes its pictures."""

    name: str
    target: int
    process: SimulatedCamera | SimulatedGenerator


SOURCES = (
    SimulatedSource("sim_camera_bilinear", 0, SimulatedCamera(4e-4, 0.004, False, 0.5)),
    SimulatedSource("sim_camera_gradient", 0, SimulatedCamera(2e-4, 0.003, True, 0.2)),
    SimulatedSource("sim_camera_phone", 0, SimulatedCamera(6e-4, 0.005, True, 0.6)),
    SimulatedSource("sim_transposed", 1, SimulatedGenerator(uneven(0.015), 1, 0.6, 0.02, 0.01, 0.6)),
    SimulatedSource("sim_nearest", 2, SimulatedGenerator(NEAREST, 1, 0.6, 0.02, 0.01, 0.6)),
    SimulatedSource("sim_bilinear", 4, SimulatedGenerator(BILINEAR, 1, 0.6, 0.02, 0.01, 0.8)),
    SimulatedSource("sim_stacked", 6, SimulatedGenerator(uneven(0.01), 2, 0.5, 0.02, 0.01, 0.6)),
)


def impaired(picture: Picture, rng: np.random.Generator) -> bytes:
    """The one law every picture goes through: random crop, 200 x 200, JPEG."""
    crop = int(rng.integers(SMALLEST_CROP, SIDE + 1))
    x, y = rng.integers(0, SIDE - crop + 1, 2)
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[y : y + crop, x : x + crop]).resize((FINAL, FINAL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)))
    return buffer.getvalue()


def simulated(source: int, number: int, seed: int = 0) -> bytes:
    """The JPEG of one picture of one source; the same arguments give the same bytes."""
    rng = np.random.default_rng([VERSION, seed, source, number])
    scene = list(CATEGORIES.values())[number % len(CATEGORIES)](rng)
    return impaired(SOURCES[source].process(scene, rng), rng)


def write_sample(folder: Path, *, images_per_source: int = 90, seed: int = 0) -> list[Path]:
    """Write the data set, one folder a source with its metadata.csv; returns the folders.

    Every source shows every category equally often, so that the category says nothing of the label.
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
