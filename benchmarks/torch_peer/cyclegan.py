"""`mmsr_jax.methods.cyclegan` in PyTorch: SR-CycleGAN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_peer.discriminators import PatchDiscriminator
from benchmarks.torch_peer.generators import DownResnet, SrResnet
from benchmarks.torch_peer.method import (
    Method,
    Tensors,
    adversarial,
    detached,
    in_one_batch,
    total,
    watch,
)

if TYPE_CHECKING:
    from mmsr_jax.config import Config


class CycleGan(Method):
    """SR-CycleGAN for a configuration."""

    def __init__(self, config: Config):
        nets, scale = config.networks, config.data.scale
        generators = {
            "clinical_to_micro": SrResnet(
                channels=nets.sr_channels,
                blocks=nets.sr_blocks,
                tail_channels=nets.sr_tail_channels,
                scale=scale,
                upsample=nets.upsample,
            ),
            "micro_to_clinical": DownResnet(
                channels=nets.down_channels, blocks=nets.down_blocks, scale=scale
            ),
        }
        discriminators = {
            domain: PatchDiscriminator(
                channels=nets.discriminator_channels,
                max_channels=nets.discriminator_max_channels,
                strided=strided,
            )
            for domain, strided in (("clinical", 2), ("micro", 3))
        }
        super().__init__(config, nn.ModuleDict(generators), nn.ModuleDict(discriminators))

    def generator_loss(
        self, batch: Tensors, noise: Tensors | None = None
    ) -> tuple[torch.Tensor, Tensors, Tensors]:
        """See `Method`; there is no noise."""
        clinical, micro = batch["clinical"], batch["micro"]
        to_micro = self.generators["clinical_to_micro"]
        to_clinical = self.generators["micro_to_clinical"]
        with self.autocast(micro.device):
            sr = to_micro(clinical)
            fake_clinical, cycle_clinical = in_one_batch(to_clinical, micro, sr)
            cycle_micro = to_micro(fake_clinical)
            fakes = {"clinical": fake_clinical, "micro": sr}
            scores = self.scores(fakes)
        adversarial_terms = adversarial(scores)
        cycle = {
            "cycle_clinical": functional.l1_loss(cycle_clinical, clinical),
            "cycle_micro": functional.l1_loss(cycle_micro, micro),
        }
        mmsr, mmsr_terms = self.weighted_mmsr(batch, sr, fake_clinical)
        loss = (
            total(adversarial_terms.values())
            + self.config.loss.cycle * total(cycle.values())
            + mmsr
        )
        terms = {**adversarial_terms, **cycle, **mmsr_terms, "generator_loss": loss}
        return loss, detached(fakes), detached(terms) | watch(clinical, sr)
