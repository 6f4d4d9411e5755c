"""Agreement of a super-resolved image with its own scan. g(x) itself agrees perfectly."""

import dataclasses
import math

import numpy as np
from skimage.filters import window
from skimage.registration import phase_cross_correlation

from mmsr_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The pooled image against the scan; PSNR and SSIM for a data range of 2."""

    consistency_psnr: float  # dB
    consistency_ssim: float
    consistency_mae_hu: float
    correlation: float  # −1: inverted
    contrast: float  # std of the image over the scan's; 0: blank
    drift_px: float  # how far it lies from the scan, in its own pixels; NaN if it is blank


def consistency(
    clinical: np.ndarray, image: np.ndarray, window_hu: tuple[float, float]
) -> Consistency:
    """Compare one image with the scan that it was made from.

    Args:
      clinical: the scan (rows, columns), at least 11 × 11, in [-1, 1] of the window.
      image: (s·rows, s·columns), likewise.
      window_hu: lower and upper end of the window.
    """
    rows, columns = clinical.shape
    scale = len(image) // rows
    pooled = image.reshape(rows, scale, columns, scale).mean(axis=(1, 3))
    half_window = (window_hu[1] - window_hu[0]) / 2
    return Consistency(
        consistency_psnr=metrics.psnr(clinical, pooled),
        consistency_ssim=metrics.ssim(clinical, pooled),
        consistency_mae_hu=float(np.abs(clinical - pooled).mean() * half_window),
        correlation=metrics.correlation(clinical, pooled),
        contrast=float(image.std() / max(float(clinical.std()), 1e-6)),
        drift_px=scale * _displacement_px(clinical, pooled),
    )


def _displacement_px(clinical: np.ndarray, pooled: np.ndarray) -> float:
    """Length of the shift at which two images of one size correlate best, to a hundredth."""
    if pooled.std() < 1e-6:
        return math.nan
    taper = window("hann", clinical.shape)
    tapered = [(one - one.mean()) * taper for one in (clinical, pooled)]
    shift, _, _ = phase_cross_correlation(*tapered, upsample_factor=100, normalization=None)
    return float(np.hypot(*shift))
