"""What a network invents, loses, or cannot make up its mind about."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.morphology import disk

from mmsr_jax.evaluation import metrics

_RECALLED = 0.5  # the share of a nodule that must be solid tissue
_BORDER_PX = 2


@dataclasses.dataclass(frozen=True)
class NoduleScore:
    """One nodule, in the scan and taken out of it."""

    contrast_recovery: float  # of the change it makes: 1 as in the truth, 0 not at all
    recalled: float  # 1: solid in the image of the scan with it
    persisted: float  # 1: solid in the image of the scan without it


def nodule_scores(
    nodules: Sequence[np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    image: tuple[np.ndarray, np.ndarray],
) -> list[NoduleScore]:
    """Whether a super-resolved image shows nodules that are there, and none that are not.

    Args:
      nodules: a mask (rows, columns) each.
      truth: micro images in [-1, 1] with and without the nodules, otherwise the same.
      image: super-resolved from scans of the two.
    """
    of_truth, of_image = (pair[0] - pair[1] for pair in (truth, image))
    with_nodules, without = (solid_structures(one) for one in image)
    return [
        NoduleScore(
            contrast_recovery=float(of_image[mask].mean() / of_truth[mask].mean()),
            recalled=float(with_nodules[mask].mean() >= _RECALLED),
            persisted=float(without[mask].mean() >= _RECALLED),
        )
        for mask in nodules
    ]


def solid_structures(image: np.ndarray) -> np.ndarray:
    """Where an image in [-1, 1] is dense tissue (above 0) that holds a disc of 3 pixels."""
    return ndimage.binary_opening(image > 0, disk(3))


def structures_without_counterpart(
    image: np.ndarray, other: np.ndarray, *, tolerance_px: int, pixel_mm: float
) -> float:
    """Solid structures of an image that touch none of the other, a square millimetre.

    With (super-resolved, truth) the false ones, with (truth, super-resolved) the missing ones.

    Args:
      image: (rows, columns) in [-1, 1].
      other: likewise.
      tolerance_px: how far apart two structures may lie and still be the same.
      pixel_mm: of the images.
    """
    labels, count = ndimage.label(solid_structures(image), np.ones((3, 3)))
    near = ndimage.binary_dilation(solid_structures(other), disk(tolerance_px))
    with_counterpart = np.setdiff1d(np.unique(labels[near]), [0])
    return (count - len(with_counterpart)) / (image.size * pixel_mm**2)


def stability(image: np.ndarray, other: np.ndarray, *, shift_px: int, scale: int) -> float:
    """PSNR in dB (data range 2) between images of the same anatomy; infinite if it is equal.

    Args:
      image: (rows, columns), super-resolved.
      other: likewise, from a scan in which the anatomy lies `shift_px` further down and right.
      shift_px: in pixels of the images.
      scale: two clinical pixels at the border are left out.
    """
    size, border = image.shape[0] - shift_px, _BORDER_PX * scale
    first, second = image[:size, :size], other[shift_px:, shift_px:]
    inner = slice(border, size - border)
    return metrics.psnr(first[inner, inner], second[inner, inner])
