"""Super-resolution against the truth: scans that were imaged in both modalities."""

import dataclasses

import numpy as np

from mmsr_jax.evaluation import metrics

_BORDER_PX = 2


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one slice; PSNR and SSIM for a data range of 2 (the [-1, 1] of the window)."""

    psnr: float  # dB, against the truth
    ssim: float
    edge_strength: float  # 1: as sharp as the truth; NaN in a slice without structures
    edge_alignment: float  # the same, of edges in the right place alone
    bias: float  # mean of image minus truth
    consistency_psnr: float  # dB, pooled image against the scan
    consistency_correlation: float
    grid_db: float  # 0: no grid


def score(clinical: np.ndarray, micro: np.ndarray, image: np.ndarray) -> Scores:
    """Score one super-resolved slice, without two clinical pixels at its border.

    Args:
      clinical: the scan (rows, columns), in [-1, 1].
      micro: the truth (s·rows, s·columns), in [-1, 1].
      image: the super-resolved slice, shaped and ranged like `micro`.
    """
    scale = len(micro) // len(clinical)
    pooled = image.reshape(len(clinical), scale, -1, scale).mean(axis=(1, 3))
    clinical, pooled = (_inner(picture, _BORDER_PX) for picture in (clinical, pooled))
    micro, image = (_inner(picture, _BORDER_PX * scale) for picture in (micro, image))
    return Scores(
        psnr=metrics.psnr(micro, image),
        ssim=metrics.ssim(micro, image),
        edge_strength=metrics.edge_strength(micro, image),
        edge_alignment=metrics.edge_alignment(micro, image),
        bias=float((image - micro).mean()),
        consistency_psnr=metrics.psnr(clinical, pooled),
        consistency_correlation=metrics.correlation(clinical, pooled),
        grid_db=metrics.grid_energy_db(image, scale),
    )


def _inner(picture: np.ndarray, border_px: int) -> np.ndarray:
    return picture[border_px:-border_px, border_px:-border_px]
