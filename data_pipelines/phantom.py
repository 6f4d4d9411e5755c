"""Lung phantoms imaged by a clinical and a micro scanner: embedded demo data with a known truth.

A phantom is a field of view wholly inside a lung, defined at micro resolution for every z:
arteries with companion airways and veins are tapering trees in three dimensions that enter from
outside the frame, nodules are bumpy balls, alveolar septa are the ridges of a Voronoi diagram
whose seeds drift with z. Everything is a function of (seed, z), so slices can be made one by one,
in any order, and neighbours agree.

Frame: the centre of micro pixel (row 0, column 0) is x = y = 0 mm; a micro pixel measures
`MICRO_SPACING_MM` in every direction. The anatomy repeats along z with period `depth_mm`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from data_pipelines.geometry import Geometry, Volume

FloatArray = NDArray[np.floating]

MICRO_SPACING_MM = 0.078125  # 0.625 mm / 8
SLICE_SPACING_MM = 0.625
AIR_HU = -1000.0
TISSUE_HU = 40.0
HU_PER_UNIT = 700.0  # half of the window [-1000, 400] HU that maps onto [-1, 1]
CLINICAL_NOISE_HU = 0.025 * HU_PER_UNIT

ALVEOLUS_PX = 11.5  # mean distances between the centres of neighbours
DUCT_PX = 48.0
LOBULE_PX = 150.0
DUCT_RADIUS_PX = 0.31 * DUCT_PX
SEPTUM_HALF_WIDTH_PX = 1.0
DROPPED_SEEDS = 0.12  # leaves some alveoli larger than others
TURN_MM = 20.0  # z over which a drifting quantity completes one cycle
ARTERY_HU, VEIN_HU, AIRWAY_WALL_HU, NODULE_HU = 110.0, 90.0, 50.0, 45.0
SMALLEST_VESSEL_PX = 1.0
SMALLEST_LUMEN_PX = 2.0
SEGMENTS_PER_BRANCH = 4
BRANCH_LENGTH = 7.0  # in radii
BEND = 0.13  # standard deviation of the heading's change from segment to segment
TAPER = 0.99  # of the radius along one segment
TREES = 24  # arteries entering a cube of the frame's width, and as many veins
NODULES = 13  # in 512 micro pixels cubed: 0.9 in a slice


class Nodule(NamedTuple):
    """A solid nodule: centre (x, y, z) in mm, mean radius in mm."""

    center_mm: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True)
class Tubes:
    """Tapering tube segments; points in micro pixels (x, y, z).

    Attributes:
      start: (n, 3) first points.
      end: (n, 3) last points.
      radius: (n, 2) radius in pixels at the first and at the last point.

    """

    start: FloatArray
    end: FloatArray
    radius: FloatArray


class LungPhantom:
    """One lung phantom at micro resolution; noise-free truth for any z.

    Args:
      seed: everything about the phantom follows from it.
      size_px: width and height of a slice, a multiple of 8, at least 128.

    Attributes:
      nodules: the ground truth for hallucination tests.
      arteries, veins: vessel trees.
      airway_lumens, airway_walls: inner and outer surfaces of the airways, segment by segment.
      depth_mm: period of the anatomy along z.

    """

    def __init__(self, seed: int, size_px: int = 512):
        if size_px < 128 or size_px % 8:
            raise ValueError(f"size_px must be a multiple of 8 from 128 up, not {size_px}")
        self.size_px = size_px
        self.depth_px = float(max(size_px, 512))
        self.depth_mm = self.depth_px * MICRO_SPACING_MM
        trees, nodules, seeds, noise = (
            np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)
        )
        self.arteries, self.airway_lumens, self.airway_walls = self._bronchovascular(trees)
        self.veins, _, _ = self._bronchovascular(trees)
        self.nodules = self._place_nodules(nodules)
        self._warp = _warp_fields(noise, size_px)
        self._plant_seeds(seeds)

    # --- anatomy that is fixed at construction -------------------------------------------

    def _turn(self, z: float) -> float:
        """Phase in radians of everything that drifts: whole cycles in one period of z."""
        return 2 * np.pi * z / self.depth_px * max(1, round(self.depth_mm / TURN_MM))

    def _bronchovascular(self, rng: np.random.Generator) -> tuple[Tubes, Tubes, Tubes]:
        """Trees whose roots lie beyond the four sides in turn and head for points in the frame."""
        half = self.size_px / 2
        count = round(TREES * self.depth_px / max(self.size_px, 256))
        radius = max(self.size_px / 60, 4.0) * rng.uniform(0.7, 1.1, count)
        top = rng.uniform(-half, half, count) - 1j * (half + 5 * radius)
        root = top * 1j ** np.arange(count) + half * (1 + 1j)
        z = (rng.permutation(count) + rng.random(count)) * self.depth_px / count
        start = np.stack([root.real, root.imag, z], axis=1)
        target = np.append(half * rng.uniform(0.5, 1.5, (count, 2)), z[:, None], axis=1)
        target[:, 2] += rng.normal(size=count) * 0.4 * half
        return grow_tree(rng, start, target - start, radius, self.size_px)

    def _place_nodules(self, rng: np.random.Generator) -> tuple[Nodule, ...]:
        """Nodules wholly inside the frame, spread evenly over z."""
        count = max(4, round(NODULES * self.size_px**2 * self.depth_px / 512**3))
        radius = rng.uniform(9, 26, count)
        x, y = rng.uniform(1.1 * radius, self.size_px - 1.1 * radius, (2, count))
        z = (np.arange(count) + rng.random(count)) * self.depth_px / count
        numbers = (np.stack([x, y, z, radius], axis=1) * MICRO_SPACING_MM).tolist()
        return tuple(Nodule((x, y, z), radius) for x, y, z, radius in numbers)

    def _plant_seeds(self, rng: np.random.Generator) -> None:
        spacing = ALVEOLUS_PX * rng.uniform(0.85, 1.15)
        self._seeds = _Drifting.hexagonal(rng, self.size_px, spacing, jitter=0.42, lift=0.35)
        self._ducts = _Drifting.hexagonal(rng, self.size_px, DUCT_PX, jitter=0.35, lift=0.2)
        self._lobules = _Drifting.hexagonal(rng, self.size_px, LOBULE_PX, jitter=0.4, lift=0.0)
        table = 1 << 14
        opacity = rng.uniform(0.1, 0.54, table) * (rng.random(table) > 0.15)
        self._opacity = opacity.astype(np.float32)
        self._width = (rng.uniform(0.8, 1.3, table) * SEPTUM_HALF_WIDTH_PX).astype(np.float32)

    # --- one slice -----------------------------------------------------------------------

    def slice_hu(self, z_mm: float, *, nodules: bool = True) -> FloatArray:
        """(size_px, size_px) float32 in Hounsfield units: the noise-free truth at height z.

        Without `nodules` it is the same lung before they grew.
        """
        z = z_mm / MICRO_SPACING_MM
        y, x = np.mgrid[: self.size_px, : self.size_px].astype(np.float32)
        tissue = self._parenchyma(x, y, z)
        for tubes, hu in ((self.arteries, ARTERY_HU), (self.veins, VEIN_HU)):
            paint(tissue, self._coverage(tubes, z), hu)
        paint(tissue, self._coverage(self.airway_walls, z), AIRWAY_WALL_HU)
        paint(tissue, self._coverage(self.airway_lumens, z), AIR_HU)
        if nodules:
            self._paint_nodules(tissue, x, y, z)
        return np.maximum(tissue, AIR_HU).astype(np.float32)

    def _coverage(self, tubes: Tubes, z: float) -> FloatArray:
        return tube_coverage(tubes, z, self.depth_px, (self.size_px, self.size_px))

    def _parenchyma(self, x: FloatArray, y: FloatArray, z: float) -> FloatArray:
        turn = self._turn(z)
        warp = self._warp[0] * np.cos(turn) + self._warp[1] * np.sin(turn)
        seeds = self._seeds.at(turn)
        points = np.stack([x + warp[0], y + warp[1], 0 * x], axis=-1)
        distance, index = cKDTree(seeds).query(points, k=3)
        planar, distance = seeds[:, :2].astype(np.float32), distance.astype(np.float32)
        second, third = (_to_bisector(planar, distance, index, k) for k in (1, 2))
        opacity, width = self._septum_properties(seeds, turn, index[..., 0], index[..., 1])
        profile = 0.5 - 0.5 * np.tanh((_smooth_minimum(second, third) - width) / 0.5)
        knot = np.exp(-((third / 2.0) ** 2))
        return AIR_HU + (TISSUE_HU - AIR_HU) * profile * np.minimum(1, opacity * (1 + 0.7 * knot))

    def _septum_properties(
        self, seeds: FloatArray, turn: float, first: NDArray, second: NDArray
    ) -> tuple[FloatArray, FloatArray]:
        """Opacity and half-width in pixels of the septum between two alveoli."""
        duct_distance, duct = cKDTree(self._ducts.at(turn)).query(seeds)
        _, lobule = cKDTree(self._lobules.at(turn)).query(seeds)
        in_duct = np.clip((DUCT_RADIUS_PX - duct_distance) / 3 + 0.5, 0, 1)
        low, high = np.minimum(first, second), np.maximum(first, second)
        key = (low * 7919 + high * 104729) % len(self._opacity)
        open_ = np.minimum(in_duct[first], in_duct[second]) * (duct[first] == duct[second])
        interlobular = lobule[first] != lobule[second]
        opacity = np.where(
            interlobular, 0.25 + 0.7 * self._opacity[key], self._opacity[key] * (1 - open_)
        )
        return opacity, self._width[key] * np.where(interlobular, 1.3, 1.0)

    def _paint_nodules(self, tissue: FloatArray, x: FloatArray, y: FloatArray, z: float) -> None:
        for number, (center_mm, radius_mm) in enumerate(self.nodules):
            cx, cy, cz = np.array(center_mm) / MICRO_SPACING_MM
            radius = radius_mm / MICRO_SPACING_MM
            dz = (z - cz + self.depth_px / 2) % self.depth_px - self.depth_px / 2
            if abs(dz) > 1.3 * radius:
                continue
            box = _box(cx, cx, cy, cy, 1.3 * radius + 1, tissue.shape)
            dx, dy = x[box] - cx, y[box] - cy
            angle = np.arctan2(dy, dx)
            bumps = 0.05 * np.cos(2 * angle + number) + 0.03 * np.cos(5 * angle + dz / radius)
            distance = np.sqrt(dx**2 + dy**2 + dz**2) - radius * (1 + bumps)
            paint(tissue[box], np.clip(0.5 - distance, 0, 1), NODULE_HU)


@dataclass(frozen=True)
class _Drifting:
    """Seeds of a Voronoi diagram that move on ellipses with z; `lift` makes cells come and go."""

    base: FloatArray
    cosine: FloatArray
    sine: FloatArray

    @classmethod
    def hexagonal(
        cls, rng: np.random.Generator, size_px: int, spacing: float, jitter: float, lift: float
    ) -> "_Drifting":
        rows = np.arange(-2, size_px / (spacing * 0.866) + 3)
        columns = np.arange(-2, size_px / spacing + 3)
        row, column = np.meshgrid(rows, columns, indexing="ij")
        x = (column + 0.5 * (row % 2)) * spacing
        y = row * spacing * 0.866
        base = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3)
        base = base[rng.random(len(base)) > DROPPED_SEEDS]
        amount = np.array([jitter, jitter, lift]) * spacing
        wave = rng.uniform(-1, 1, (2, len(base), 3)) * amount
        return cls(base, wave[0], wave[1])

    def at(self, turn: float) -> FloatArray:
        """(n, 3) seeds at the phase `turn` (radians) of the drift."""
        return self.base + self.cosine * np.cos(turn) + self.sine * np.sin(turn)


def _warp_fields(rng: np.random.Generator, size_px: int) -> FloatArray:
    """(2, 2, size, size) pixels: cosine and sine part of the x and y displacement."""
    fields = np.zeros((2, 2, size_px, size_px))
    for amplitude, wavelength in ((0.8, 11.0), (2.5, 50.0)):
        grid = int(size_px / wavelength * 2) + 4
        spline = ndimage.zoom(np.eye(grid), (wavelength / 2, 1), order=3)[:size_px]
        smooth = spline @ rng.normal(size=(2, 2, grid, grid)) @ spline.T
        fields += amplitude * smooth / smooth.std(axis=(2, 3), keepdims=True)
    return fields.astype(np.float32)


def _to_bisector(seeds: FloatArray, distance: FloatArray, index: NDArray, k: int) -> FloatArray:
    """Distance in the plane from each point to the border between its cell and its k-th other."""
    apart = seeds[index[..., k]] - seeds[index[..., 0]]
    gap = np.hypot(apart[..., 0], apart[..., 1])
    return (distance[..., k] ** 2 - distance[..., 0] ** 2) / (2 * gap + 1e-3)


def _smooth_minimum(a: FloatArray, b: FloatArray, softness: float = 1.0) -> FloatArray:
    """Rounds the corners of cells: less than min(a, b) where the two are close."""
    return -softness * np.log(np.exp(-a / softness) + np.exp(-b / softness))


def grow_tree(
    rng: np.random.Generator,
    root: FloatArray,
    heading: FloatArray,
    radius: FloatArray,
    size_px: int,
) -> tuple[Tubes, Tubes, Tubes]:
    """An arterial tree with its airways: (arteries, airway lumens, airway walls).

    Bifurcations obey Murray's law (the cubes of the radii add up); branches bend, taper and end
    where they are small or far outside the frame.
    """
    position, radii = root, radius
    direction = heading / np.linalg.norm(heading, axis=1, keepdims=True)
    pieces = []
    while len(radii):
        length = BRANCH_LENGTH * radii * rng.uniform(0.7, 1.4, len(radii))
        for _ in range(SEGMENTS_PER_BRANCH):
            bent = direction + BEND * rng.normal(size=direction.shape)
            bent /= np.linalg.norm(bent, axis=1, keepdims=True)
            end = position + bent * (length / SEGMENTS_PER_BRANCH)[:, None]
            pieces.append((position, end, direction, bent, radii, radii * TAPER))
            position, direction, radii = end, bent, radii * TAPER
        position, direction, radii = _bifurcate(rng, position, direction, radii)
        outside = np.abs(position[:, :2] - size_px / 2).max(axis=1) - size_px / 2
        alive = (radii > SMALLEST_VESSEL_PX) & (outside < BRANCH_LENGTH * radii)
        position, direction, radii = position[alive], direction[alive], radii[alive]
    start, end, before, after, r0, r1 = (np.concatenate(part) for part in zip(*pieces))
    return _with_airways(start, end, before, after, np.stack([r0, r1], axis=1))


def _bifurcate(
    rng: np.random.Generator, position: FloatArray, direction: FloatArray, radii: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    share = rng.uniform(0.06, 0.94, len(radii))
    side = np.cross(direction, rng.normal(size=direction.shape))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    children = []
    for part, sign in ((share, 1.0), (1 - share, -1.0)):
        angle = sign * 1.2 * (1 - part)
        heading = direction * np.cos(angle)[:, None] + side * np.sin(angle)[:, None]
        children.append((position, heading, radii * np.cbrt(part)))
    first, second = children
    return tuple(np.concatenate(pair) for pair in zip(first, second))  # type: ignore[return-value]


def _with_airways(
    start: FloatArray, end: FloatArray, before: FloatArray, after: FloatArray, radius: FloatArray
) -> tuple[Tubes, Tubes, Tubes]:
    lumen = 1.05 * radius
    wall = 0.22 * lumen + 1.0
    apart = (radius + lumen + wall)[..., None] * 1.05
    fixed = np.array([0.48, -0.36, 0.8])
    shift = [np.cross(d, fixed) for d in (before, after)]
    shift = [s / (np.linalg.norm(s, axis=1, keepdims=True) + 0.2) for s in shift]
    keep = lumen[:, 1] > SMALLEST_LUMEN_PX
    first, last = start + shift[0] * apart[:, 0], end + shift[1] * apart[:, 1]
    lumens = Tubes(first[keep], last[keep], lumen[keep])
    walls = Tubes(first[keep], last[keep], (lumen + wall)[keep])
    return Tubes(start, end, radius), lumens, walls


def tube_coverage(tubes: Tubes, z: float, period: float, shape: tuple[int, int]) -> FloatArray:
    """Fraction of each pixel of the plane z that lies inside the tubes, (rows, columns)."""
    coverage = np.zeros(shape, np.float32)
    axis = tubes.end - tubes.start
    largest = tubes.radius.max(axis=1) + 1
    offset = (tubes.start[:, 2] - z + period / 2) % period - period / 2
    low = np.minimum(offset, offset + axis[:, 2]) - largest
    high = np.maximum(offset, offset + axis[:, 2]) + largest
    for k in np.flatnonzero((low < 0) & (high > 0)):
        (x0, y0, _), (dx, dy, dz), (r0, r1) = tubes.start[k], axis[k], tubes.radius[k]
        box = _box(x0, x0 + dx, y0, y0 + dy, largest[k], shape)
        y, x = np.ogrid[box]
        px, py, pz = x - x0, y - y0, -offset[k]
        along = (px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz)
        along = np.minimum(np.maximum(along, 0), 1)
        distance = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2 + (pz - along * dz) ** 2)
        inside = np.minimum(r0 + (r1 - r0) * along - distance + 0.5, 1)
        np.maximum(coverage[box], inside, out=coverage[box])
    return coverage


def _box(
    x0: float, x1: float, y0: float, y1: float, margin: float, shape: tuple[int, ...]
) -> tuple[slice, slice]:
    """The pixels within `margin` of a segment, cut to the image."""
    top, left = (max(int(min(pair) - margin), 0) for pair in ((y0, y1), (x0, x1)))
    bottom, right = (max(int(max(pair) + margin) + 2, 0) for pair in ((y0, y1), (x0, x1)))
    return slice(top, min(bottom, shape[0])), slice(left, min(right, shape[1]))


def paint(image: FloatArray, coverage: FloatArray, hu: float | FloatArray) -> None:
    """Mix `hu` into `image` in place, by the fraction of each pixel that it covers."""
    image += coverage * (hu - image)


def scan_micro(
    truth_hu: FloatArray,
    rng: np.random.Generator,
    blur_px: float = 1.0,
    noise_hu: float = 0.02 * HU_PER_UNIT,
) -> FloatArray:
    """The micro scanner: (size, size) float32 HU from a truth of the same shape."""
    blurred = ndimage.gaussian_filter(truth_hu.astype(np.float32), blur_px, mode="nearest")
    return blurred + (noise_hu * rng.standard_normal(blurred.shape)).astype(np.float32)


def scan_clinical(
    truth_hu: FloatArray,
    rng: np.random.Generator,
    scale: int = 8,
    noise_hu: float = CLINICAL_NOISE_HU,
    noise_correlation_px: float = 0.6,
) -> FloatArray:
    """The clinical scanner: (size/scale, size/scale) float32 HU.

    The point-spread function is a Gaussian of `scale`/2 micro pixels; noise is correlated over
    `noise_correlation_px` clinical pixels and has standard deviation `noise_hu`.
    """
    blurred = ndimage.gaussian_filter(truth_hu.astype(np.float32), scale / 2, mode="nearest")
    rows, columns = (n // scale for n in truth_hu.shape)
    pooled = blurred.reshape(rows, scale, columns, scale).mean(axis=(1, 3))
    impulse = np.zeros((9, 9))
    impulse[4, 4] = 1
    gain = np.linalg.norm(ndimage.gaussian_filter(impulse, noise_correlation_px))
    white = rng.standard_normal(pooled.shape)
    noise = ndimage.gaussian_filter(white, noise_correlation_px, mode="wrap") / gain
    return (pooled + noise_hu * noise).astype(np.float32)


def phantom_volumes(
    seed: int, size_px: int = 512, slices: int = 16, scale: int = 8
) -> tuple[Volume, Volume]:
    """One phantom through both scanners: (clinical, micro) int16 HU volumes, (z, y, x).

    Both share slices and frame; the micro geometry is `clinical.geometry.finer_in_plane(scale)`.
    """
    phantom = LungPhantom(seed, size_px)
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(6)[5])
    clinical, micro = [], []
    for number in range(slices):
        truth = phantom.slice_hu(number * SLICE_SPACING_MM)
        clinical.append(np.rint(scan_clinical(truth, rng, scale)).astype(np.int16))
        micro.append(np.rint(scan_micro(truth, rng)).astype(np.int16))
    corner_mm = (scale - 1) / 2 * MICRO_SPACING_MM
    pixel_mm = scale * MICRO_SPACING_MM
    geometry = Geometry(
        spacing_mm=(pixel_mm, pixel_mm, SLICE_SPACING_MM),
        origin_mm=(corner_mm, corner_mm, 0.0),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    finer = geometry.finer_in_plane(scale)
    return Volume(np.stack(clinical), geometry), Volume(np.stack(micro), finer)
