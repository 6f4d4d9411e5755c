"""Airways in a slice: wall thickness and lumen area, by the half-maximum method.

The density along rays from the lumen's centre rises to the wall's peak and falls beyond it; the
wall lies between the points half-way up and half-way down (Reinhardt et al. 1997, "Accurate
measurement of intrathoracic airways"). A blurred image makes thin walls thick.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage
from skimage.measure import label, regionprops

_RAYS = 64
_STEP_PX = 0.25
_SMALLEST_RADIUS_PX = 3.0
_BEYOND_PX = 6.0  # how far rays go past the outer surface
_LEAST_RISE = 0.2  # of a wall above its lumen and its outside, in an image in [-1, 1]
_LEAST_FREE = 0.5  # of the rays of an airway, to be measured at all
_LEAST_SHOWN = 0.8  # of the free rays, to say that an image shows the wall; texture shows some


@dataclasses.dataclass(frozen=True)
class Airway:
    """One airway of the truth: the rays along which its wall can be measured."""

    center: tuple[float, float]  # row, column
    angles: np.ndarray  # (n,) radians
    inner_px: np.ndarray  # (n,) from the centre to the lumen's surface
    outer_px: np.ndarray  # (n,) to the wall's


@dataclasses.dataclass(frozen=True)
class AirwayErrors:
    """One airway of an image against the truth; NaN where no wall was found."""

    wall_error: float  # relative error of the mean wall thickness
    lumen_error: float  # relative error of the lumen's area
    lost: float  # 1: no wall found


def airways(truth: np.ndarray, lumens: np.ndarray, walls: np.ndarray) -> list[Airway]:
    """The measurable airways of a slice.

    Wholly inside the image, a lumen as large as a disc of 3 pixels radius and empty in the truth,
    at least half of the rays free: along a free ray the truth shows the wall at its place, with
    nothing dense (a companion artery) against its outer side.

    Args:
      truth: (rows, columns) in [-1, 1].
      lumens: bool, inside of the airways.
      walls: bool, inside of their outer surfaces; contains `lumens`.
    """
    found = []
    for region in regionprops(label(lumens)):
        reach = region.axis_major_length / 2 + _BEYOND_PX + 4
        center = region.centroid
        inside = all(reach < at < size - reach for at, size in zip(center, truth.shape))
        large = region.area >= math.pi * _SMALLEST_RADIUS_PX**2
        if not (inside and large and lumens[tuple(np.rint(center).astype(int))]):
            continue
        angles = np.arange(_RAYS) * 2 * math.pi / _RAYS
        inner, outer = (_surface(mask, center, angles, reach) for mask in (lumens, walls))
        airway = Airway((float(center[0]), float(center[1])), angles, inner, outer)
        measured = _walls_along(airway, truth)
        free = np.abs(measured - np.stack([inner, outer])).max(axis=0) < 1.5
        if free.mean() >= _LEAST_FREE:
            found.append(Airway(airway.center, angles[free], inner[free], outer[free]))
    return found


def airway_errors(airway: Airway, truth: np.ndarray, image: np.ndarray) -> AirwayErrors:
    """Wall and lumen of one airway in an image, against the same measurement of the truth."""
    reference, measured = (_walls_along(airway, one) for one in (truth, image))
    shown = ~np.isnan(measured).any(axis=0)
    if shown.mean() < _LEAST_SHOWN:
        return AirwayErrors(math.nan, math.nan, 1.0)

    def wall_and_area(surfaces: np.ndarray) -> tuple[float, float]:
        inner, outer = surfaces[:, shown]
        return float((outer - inner).mean()), float((inner**2).mean())

    (wall, area), (true_wall, true_area) = wall_and_area(measured), wall_and_area(reference)
    return AirwayErrors(abs(wall / true_wall - 1), abs(area / true_area - 1), 0.0)


def _surface(
    mask: np.ndarray, center: tuple[float, float], angles: np.ndarray, reach: float
) -> np.ndarray:
    """(n,) distance from the centre to where a mask first ends."""
    inside = _profiles(mask.astype(float), center, angles, reach) > 0.5
    return np.argmin(inside, axis=1) * _STEP_PX


def _profiles(
    image: np.ndarray, center: tuple[float, float], angles: np.ndarray, reach: float
) -> np.ndarray:
    """(n, samples): the image along rays from the centre."""
    radius = np.arange(0, reach, _STEP_PX)
    rows = center[0] + np.outer(np.sin(angles), radius)
    columns = center[1] + np.outer(np.cos(angles), radius)
    return ndimage.map_coordinates(image.astype(float), [rows, columns], order=1, mode="nearest")


def _walls_along(airway: Airway, image: np.ndarray) -> np.ndarray:
    """(2, n): distances to the wall's inner and outer half-maximum; NaN without a wall."""
    reach = float(airway.outer_px.max()) + _BEYOND_PX
    profiles = _profiles(image, airway.center, airway.angles, reach)
    surfaces = [
        _half_maxima(profile, outer / _STEP_PX)
        for profile, outer in zip(profiles, airway.outer_px, strict=True)
    ]
    return np.array(surfaces).T * _STEP_PX


def _half_maxima(profile: np.ndarray, outer: float) -> tuple[float, float]:
    """Where a profile crosses half of its peak's rise before and after it, in samples.

    The peak is the highest up to 2 pixels beyond the true outer surface.
    """
    peak = int(profile[: int(outer + 2 / _STEP_PX) + 1].argmax())
    end = int(outer + _BEYOND_PX / _STEP_PX) + 1
    before, after = profile[: peak + 1], profile[peak:end]
    if min(profile[peak] - before.min(), profile[peak] - after.min()) < _LEAST_RISE:
        return math.nan, math.nan
    rise = peak - _first_below(before[::-1], (profile[peak] + before.min()) / 2)
    return rise, peak + _first_below(after, (profile[peak] + after.min()) / 2)


def _first_below(values: np.ndarray, level: float) -> float:
    """Index, interpolated, where values that start above a level first reach it."""
    index = int(np.argmax(values <= level))
    above, below = values[index - 1], values[index]
    return index - float((level - below) / (above - below))
