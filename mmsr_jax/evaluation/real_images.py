"""Real scans and micro images for an evaluation, normalised to [-1, 1]."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from data_pipelines import volumes
from data_pipelines.errors import UserError
from data_pipelines.find_cases import find_cases
from data_pipelines.geometry import axial
from data_pipelines.hounsfield import check_hounsfield
from data_pipelines.intensity import clinical_intensity, estimate_anchors
from data_pipelines.lung_mask import lung_mask

_SLICES = 4  # of a volume
_SMALLEST_SQUARE_PX = 16
_LARGEST_REACH_PX = 48


@dataclasses.dataclass(frozen=True)
class RealImage:
    """One image (rows, columns) in [-1, 1]; `pixel_mm` is 1 if the file does not say."""

    title: str
    image: np.ndarray
    pixel_mm: float


def lung_squares(paths: Sequence[str], window_hu: tuple[float, float]) -> list[RealImage]:
    """The largest squares inside the lungs, of a few slices of every scan.

    Args:
      paths: scans, folders or patterns, as for `data_pipelines.prepare`.
      window_hu: becomes [-1, 1].

    Raises:
      UserError: no scan there, no Hounsfield units, or no lung large enough.
    """
    normalise = clinical_intensity(window_hu).normalise
    squares = []
    for path in find_cases(paths):
        scan = axial(volumes.read_volume(path))
        check_hounsfield(scan.array, str(path))
        lungs = lung_mask(scan.array, scan.geometry.spacing_mm, str(path))
        for z in _spread(np.flatnonzero(lungs.any(axis=(1, 2)))):
            top, left, side = _largest_square(lungs[z])
            if side >= _SMALLEST_SQUARE_PX:
                square = normalise(scan.array[z, top : top + side, left : left + side])
                title = f"{path.name}, slice {z}"
                squares.append(RealImage(title, square, scan.geometry.spacing_mm[0]))
    if not squares:
        raise UserError(
            f"{', '.join(paths)} shows no lung of {_SMALLEST_SQUARE_PX} pixels across; give chest "
            "scans"
        )
    return squares


def micro_slices(paths: Sequence[str], scale: int, *, inverted: bool) -> list[RealImage]:
    """A few slices of every micro image, cut to a multiple of `scale`.

    Air and tissue are found in each image's histogram, as for `data_pipelines.prepare`.

    Args:
      paths: micro volumes or pictures, folders or patterns.
      scale: micro pixels a clinical pixel.
      inverted: air is bright, as in electron microscopy.

    Raises:
      UserError: no image there, one without contrast, or one too small.
    """
    slices = []
    for path in find_cases(paths):
        volume = volumes.read_volume(path, spacing_mm=(1.0, 1.0, 1.0))
        try:
            levels = estimate_anchors(volume.array, inverted=inverted)
        except ValueError as error:
            raise UserError(f"{path} has no contrast ({error}); leave it out") from error
        rows, columns = (size // scale * scale for size in volume.array.shape[1:])
        if min(rows, columns) < _SMALLEST_SQUARE_PX * scale:
            raise UserError(
                f"{path} has slices of {volume.array.shape[2]} x {volume.array.shape[1]} pixels; "
                f"{_SMALLEST_SQUARE_PX * scale} at least are needed on a side"
            )
        for z in _spread(np.arange(len(volume.array))):
            image = levels.normalise(volume.array[z, :rows, :columns])
            title = f"{path.name}, slice {z}"
            slices.append(RealImage(title, image, volume.geometry.spacing_mm[0]))
    return slices


def _spread(indices: np.ndarray) -> np.ndarray:
    """At most `_SLICES` of the indices, evenly spread, none at the ends if avoidable."""
    count = min(_SLICES, len(indices))
    at = (np.arange(count) + 0.5) * len(indices) / count
    return indices[at.astype(int)]


def _largest_square(mask: np.ndarray) -> tuple[int, int, int]:
    """(top, left, side) of the largest square inside a mask, up to 2·`_LARGEST_REACH_PX` + 1."""
    distance = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    reach = min(int(distance[row, column]) - 1, _LARGEST_REACH_PX)
    return int(row) - reach, int(column) - reach, 2 * reach + 1
