"""How much images look like a domain's, without pairs and without downloaded weights.

None of these sees whether an image shows what is there: an inverted one can have a perfect
spectrum. Read them beside correlation and structure.
"""

import numpy as np
from scipy.stats import wasserstein_distance
from skimage.transform import pyramid_gaussian, pyramid_laplacian

_LEVELS = 4
_NEIGHBOURHOOD_PX = 7
_NEIGHBOURHOODS = 4096  # of a set, at each level
_DIRECTIONS = 128


def sliced_wasserstein(images: np.ndarray, references: np.ndarray, seed: int = 0) -> float:
    """Sliced Wasserstein distance on Laplacian pyramids (Karras et al. 2018, section 5).

    Neighbourhoods of 7 × 7 pixels at random places of each level, divided by the references'
    standard deviation there (so that a wrong contrast counts), projected on random directions;
    mean distance over directions, then over up to four levels, the last of them the blurred image
    that the others leave.

    Args:
      images: (n, rows, columns).
      references: (m, rows, columns), of the same size, other images of the domain.
      seed: of places and directions.

    Returns:
      About 0 for equal sets (their neighbourhoods are samples), 0.8 for twice the contrast.
    """
    rng = np.random.default_rng(seed)
    of_images, of_references = (_pyramids(group) for group in (images, references))
    distances = []
    for level, reference in zip(of_images, of_references, strict=True):
        directions = rng.normal(size=(_NEIGHBOURHOOD_PX**2, _DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        spread = reference.std() + 1e-6
        projected = [
            np.sort(_neighbourhoods(group / spread, rng) @ directions, axis=0)
            for group in (level, reference)
        ]
        distances.append(np.abs(projected[0] - projected[1]).mean())
    return float(np.mean(distances))


def histogram_distance(images: np.ndarray, references: np.ndarray) -> float:
    """Wasserstein distance of the values of two sets, in their own units."""
    return float(wasserstein_distance(images.ravel(), references.ravel()))


def _pyramids(images: np.ndarray) -> list[np.ndarray]:
    """A (n, rows, columns) array for each level, finest first."""
    smallest = min(images.shape[1:])
    levels = min(_LEVELS, int(np.log2(smallest / _NEIGHBOURHOOD_PX)) + 1)
    return [
        np.stack(level) for level in zip(*(_pyramid(one, levels) for one in images), strict=True)
    ]


def _pyramid(image: np.ndarray, levels: int) -> list[np.ndarray]:
    *details, _ = pyramid_laplacian(image, max_layer=levels - 1)
    *_, rest = pyramid_gaussian(image, max_layer=levels - 1)
    return [*details, rest]


def _neighbourhoods(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(_NEIGHBOURHOODS, 49): random neighbourhoods of a set of images."""
    windows = np.lib.stride_tricks.sliding_window_view(
        images, (_NEIGHBOURHOOD_PX, _NEIGHBOURHOOD_PX), axis=(1, 2)
    )
    places = (rng.integers(0, size, _NEIGHBOURHOODS) for size in windows.shape[:3])
    return windows[tuple(places)].reshape(_NEIGHBOURHOODS, -1)
