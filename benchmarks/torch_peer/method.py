"""What SR-CycleGAN and SR-UNIT have in common in PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_peer.losses import (
    MmsrLoss,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)

if TYPE_CHECKING:  # it would import JAX
    from mmsr_jax.config import Config

Tensors = dict[str, torch.Tensor]
DOMAINS = ("clinical", "micro")


class Method(nn.Module, ABC):
    """The networks of a method, by our names, and its two losses.

    A batch is {"clinical": (n, 1, h, w), "micro": (n, 1, s·h, s·w)}, float32 in [-1, 1]. The
    networks compute in the configuration's dtype, by autocast; parameters, norms and losses are
    float32.
    """

    def __init__(self, config: Config, generators: nn.ModuleDict, discriminators: nn.ModuleDict):
        super().__init__()
        self.config = config
        self.generators = generators
        self.discriminators = discriminators
        self.mmsr_loss = MmsrLoss(
            clinical_px=config.data.clinical_patch_px,
            scale=config.data.scale,
            ssim_constants=config.loss.ssim_constants,
        )

    @abstractmethod
    def generator_loss(
        self, batch: Tensors, noise: Tensors | None = None
    ) -> tuple[torch.Tensor, Tensors, Tensors]:
        """The loss, the fakes by domain and the named terms; the last two detached.

        Args:
          batch: see the class.
          noise: of the codes by name, of SR-UNIT alone; drawn if not given.
        """

    def discriminator_loss(self, fakes: Tensors, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        """The loss and the named terms, detached; reals and fakes in one batch."""
        terms = {}
        for domain in DOMAINS:
            both = torch.cat([batch[domain], fakes[domain]])
            with self.autocast(both.device):
                scores = self.discriminators[domain](both)
            halves = (score.chunk(2) for score in scores)
            terms[f"discriminator_{domain}"] = total(
                lsgan_discriminator_loss(real, fake) for real, fake in halves
            )
        return total(terms.values()), detached(terms)

    def autocast(self, device: torch.device) -> torch.autocast:
        """In which the networks are to be called."""
        dtype = getattr(torch, self.config.compute_dtype)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def scores(self, fakes: Tensors) -> dict[str, list[torch.Tensor]]:
        """Each domain's discriminator of its fakes."""
        return {domain: self.discriminators[domain](fakes[domain]) for domain in DOMAINS}

    def weighted_mmsr(
        self, batch: Tensors, sr: torch.Tensor, fake_clinical: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        """The weighted MMSR loss and its four terms."""
        loss = self.config.loss
        weights = (loss.lambda_1, loss.lambda_2, loss.lambda_3, loss.lambda_4)
        terms = self.mmsr_loss(batch["clinical"], sr, batch["micro"], fake_clinical)
        return total(weight * term for weight, term in zip(weights, terms.values())), terms


def in_one_batch(
    function: Callable[[torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `function` gives of two batches of n images, computed as one of 2·n."""
    of_a, of_b = function(torch.cat([a, b])).chunk(2)
    return of_a, of_b


def adversarial(scores: dict[str, list[torch.Tensor]]) -> Tensors:
    """The generators' LSGAN term of each domain, summed over a discriminator's scales."""
    return {
        f"adversarial_{domain}": total(map(lsgan_generator_loss, scores[domain]))
        for domain in DOMAINS
    }


def watch(clinical: torch.Tensor, sr: torch.Tensor) -> Tensors:
    """`mmsr_jax.methods.terms.watch`: agreement with the scan, and contrast."""
    clinical, sr = clinical.detach(), sr.detach()
    pooled = functional.avg_pool2d(sr, sr.shape[2] // clinical.shape[2])
    a, b = (x - x.mean(dim=(2, 3), keepdim=True) for x in (clinical, pooled))
    power = (a.square().mean(dim=(1, 2, 3)) * b.square().mean(dim=(1, 2, 3))).sqrt()
    correlation = (a * b).mean(dim=(1, 2, 3)) / (power + 1e-8)
    deviations = [x.std(dim=(1, 2, 3), correction=0) for x in (sr, clinical)]
    contrast = deviations[0] / (deviations[1] + 1e-8)
    return {"correlation": correlation.mean(), "contrast": contrast.mean()}


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Their sum."""
    return cast("torch.Tensor", sum(terms))


def detached(terms: Tensors) -> Tensors:
    """The same without their gradients."""
    return {name: term.detach() for name, term in terms.items()}
