"""`mmsr_jax.losses` in PyTorch, as the preset `paper` uses them.

Images are NCHW, float32 in [-1, 1]; every term is unweighted.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

SSIM_CONSTANTS = {"printed": (0.02, 0.06), "squared": (4e-4, 36e-4)}
_WINDOW_PX, _WINDOW_SIGMA_PX = 11, 1.5
_LEAST_VARIANCE = torch.finfo(torch.float32).eps ** 2


def lsgan_generator_loss(scores_of_fakes: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of a discriminator's scores of fakes from 1."""
    return (scores_of_fakes - 1).square().mean()


def lsgan_discriminator_loss(
    scores_of_reals: torch.Tensor, scores_of_fakes: torch.Tensor
) -> torch.Tensor:
    """Half the sum of the mean squared distances: of reals from 1 and of fakes from 0."""
    return 0.5 * ((scores_of_reals - 1).square().mean() + scores_of_fakes.square().mean())


def kl_loss(mean: torch.Tensor) -> torch.Tensor:
    """The mean of `mean`², in float32."""
    return mean.float().square().mean()


class MmsrLoss(nn.Module):
    """The four MMSR terms: SSIM with the Gaussian window, intensity as mean squared error."""

    def __init__(self, *, clinical_px: int, scale: int, ssim_constants: str):
        super().__init__()
        self.scale = scale
        self.structure_clinical = StructureLoss(clinical_px, ssim_constants)
        self.structure_micro = StructureLoss(clinical_px * scale, ssim_constants)

    def forward(
        self,
        clinical: torch.Tensor,
        sr: torch.Tensor,
        micro: torch.Tensor,
        fake_clinical: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The unweighted terms by name, in the order of λ1 to λ4."""
        pooled_sr = functional.avg_pool2d(sr, self.scale)
        raised_fake = functional.interpolate(fake_clinical, scale_factor=self.scale)
        return {
            "structure_clinical": self.structure_clinical(clinical, pooled_sr),
            "structure_micro": self.structure_micro(micro, raised_fake),
            "intensity_clinical": functional.mse_loss(pooled_sr, clinical),
            "intensity_micro": functional.mse_loss(raised_fake, micro),
        }


class StructureLoss(nn.Module):
    """One minus the mean structural similarity of square images, which are moved to [0, 2]."""

    def __init__(self, size_px: int, constants: str):
        super().__init__()
        self.constants = SSIM_CONSTANTS[constants]
        self.register_buffer("window", _band_matrix(size_px), persistent=False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The loss of two (n, 1, size, size) batches."""
        c1, c2 = self.constants
        a, b = a + 1, b + 1
        mean_a, mean_b, square_a, square_b, product = self._window_means(
            torch.stack([a, b, a * a, b * b, a * b])
        )
        variance_a = (square_a - mean_a.square()).clamp(min=_LEAST_VARIANCE)
        variance_b = (square_b - mean_b.square()).clamp(min=_LEAST_VARIANCE)
        covariance = product - mean_a * mean_b
        possible = torch.sqrt(variance_a * variance_b)
        covariance = torch.sign(covariance) * torch.minimum(possible, covariance.abs())
        luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
        return 1 - (luminance * structure).mean()

    def _window_means(self, images: torch.Tensor) -> torch.Tensor:
        window = cast("torch.Tensor", self.window)
        return window @ images @ window.T


def _band_matrix(size_px: int) -> torch.Tensor:
    """(size − 10, size): row r weighs pixels r to r + 10 with the Gaussian window."""
    rows = torch.arange(size_px - _WINDOW_PX + 1)[:, None]
    offsets = torch.arange(size_px) - rows - _WINDOW_PX // 2
    weights = torch.exp(-0.5 * (offsets.double() / _WINDOW_SIGMA_PX) ** 2)
    weights = weights * (offsets.abs() <= _WINDOW_PX // 2)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
