"""Where to look in a lung image: a bronchus, a tumour and a vessel, found automatically."""

import math
from collections.abc import Sequence

import numpy as np
from skimage.feature import hessian_matrix, hessian_matrix_eigvals

_WALL = 1.7  # from a lumen's centre to its wall, over the scale that answers to the lumen
REGIONS = ("bronchus", "tumour", "vessel")


def find_regions(
    image: np.ndarray,
    *,
    sigmas_px: Sequence[float],
    side_px: int,
    mask: np.ndarray | None = None,
) -> dict[str, tuple[int, int]]:
    """The clearest bronchus, tumour (or nodule) and vessel of a slice.

    By the eigenvalues of the Hessian over several scales (Frangi et al. 1998): a lumen across its
    axis is dark in both directions, a tumour bright in both, a vessel along its axis bright in one
    alone. A lumen must have tissue around it, a tumour and a vessel must be tissue.

    Args:
      image: (rows, columns) in [-1, 1].
      sigmas_px: scales of lumens and vessels in pixels of the image, about 0.7 radii; tumours are
        looked for at twice the scales.
      side_px: side of the returned squares, cut down to the image's.
      mask: (rows, columns), where structures may lie; everywhere by default.

    Returns:
      (top, left) of a square around each of `REGIONS`, inside the image.
    """
    allowed = np.ones(image.shape, bool) if mask is None else mask
    scores = {name: np.full(image.shape, -np.inf) for name in REGIONS}
    for sigma in sigmas_px:
        for name, score in _scores(image, sigma).items():
            np.maximum(scores[name], np.where(allowed, score, -np.inf), out=scores[name])
    return {name: _square(scores[name], side_px) for name in REGIONS}


def _scores(image: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    """Scores of every pixel as the centre of each structure, at one scale."""
    larger, smaller = _curvatures(image, sigma)
    tissue = (np.clip(image, -1, 1) + 1) / 2
    return {
        "bronchus": np.maximum(smaller, 0) * (1 - tissue) * _around(tissue, _WALL * sigma) ** 2,
        "tumour": np.maximum(-_curvatures(image, 2 * sigma)[0], 0) * tissue,
        "vessel": np.maximum(-smaller - 2 * np.abs(larger), 0) * tissue,
    }


def _curvatures(image: np.ndarray, sigma: float) -> np.ndarray:
    """(2, rows, columns): eigenvalues of the scale-normalised Hessian, the larger first."""
    hessian = hessian_matrix(image, sigma=sigma, mode="nearest", use_gaussian_derivatives=True)
    return sigma**2 * hessian_matrix_eigvals(hessian)


def _around(tissue: np.ndarray, radius: float) -> np.ndarray:
    """The least tissue in eight directions at a distance: low unless a wall is all around."""
    rows, columns = np.indices(tissue.shape)
    least = np.ones(tissue.shape)
    for angle in np.arange(8) * math.pi / 4:
        at = [
            np.clip(np.rint(index + radius * step).astype(int), 0, extent - 1)
            for index, step, extent in zip(
                (rows, columns), (math.sin(angle), math.cos(angle)), tissue.shape, strict=True
            )
        ]
        least = np.minimum(least, tissue[tuple(at)])
    return least


def _square(score: np.ndarray, side_px: int) -> tuple[int, int]:
    """The square around the highest score, moved into the image."""
    centre = np.unravel_index(int(score.argmax()), score.shape)
    top, left = (
        int(np.clip(at - side_px // 2, 0, max(extent - side_px, 0)))
        for at, extent in zip(centre, score.shape, strict=True)
    )
    return top, left
