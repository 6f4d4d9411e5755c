"""Super-resolution against the truth: scans that were imaged in both modalities."""

import dataclasses

import numpy as np

from data_pipelines.intensity import clinical_intensity, to_hu
from data_pipelines.phantom import CLINICAL_NOISE_HU, scan_clinical
from mmsr_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one slice; PSNR and SSIM for a data range of 2 (the [-1, 1] of the window)."""

    psnr: float  # dB, against the truth
    ssim: float
    edge_strength: float  # 1: as sharp as the truth; NaN in a slice without structures
    edge_alignment: float  # the same, of edges in the right place alone
    bias: float  # mean of image minus truth
    grid_db: float  # 0: no grid


def score(micro: np.ndarray, image: np.ndarray, scale: int) -> Scores:
    """Score one super-resolved slice.

    Args:
      micro: the truth (s·rows, s·columns), in [-1, 1].
      image: the super-resolved slice, shaped and ranged like `micro`.
      scale: s.
    """
    return Scores(
        psnr=metrics.psnr(micro, image),
        ssim=metrics.ssim(micro, image),
        edge_strength=metrics.edge_strength(micro, image),
        edge_alignment=metrics.edge_alignment(micro, image),
        bias=float((image - micro).mean()),
        grid_db=metrics.grid_energy_db(image, scale),
    )


def degradation(scale: int) -> str:
    """What `degrade` does, in a sentence."""
    return (
        f"Scans: Gaussian blur of {scale / 2:g} pixels standard deviation, mean of {scale} × "
        f"{scale} pixels, {CLINICAL_NOISE_HU:g} HU of noise. "
    )


def degrade(micro: np.ndarray, scale: int, window_hu: tuple[float, float], seed: int) -> np.ndarray:
    """A micro image as the phantoms' clinical scanner would see it.

    A Gaussian point-spread function of `scale`/2 pixels, averaging over `scale` × `scale` pixels,
    noise of `CLINICAL_NOISE_HU` correlated over 0.6 clinical pixels.

    Args:
      micro: (s·rows, s·columns) in [-1, 1] of the window.
      scale: s.
      window_hu: lower and upper end of the window.
      seed: of the noise.

    Returns:
      The scan (rows, columns), in [-1, 1].
    """
    scan_hu = scan_clinical(to_hu(micro, window_hu), np.random.default_rng(seed), scale)
    return clinical_intensity(window_hu).normalise(scan_hu)
