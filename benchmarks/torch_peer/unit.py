"""`mmsr_jax.methods.unit` in PyTorch: SR-UNIT."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_peer.autoencoders import Decoder, Encoder
from benchmarks.torch_peer.blocks import ResidualBlock
from benchmarks.torch_peer.discriminators import MultiScaleDiscriminator
from benchmarks.torch_peer.losses import kl_loss
from benchmarks.torch_peer.method import (
    DOMAINS,
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


class Unit(Method):
    """SR-UNIT for a configuration."""

    def __init__(self, config: Config):
        nets, latent = config.networks, config.networks.unit_channels
        levels = config.data.scale.bit_length() - 1
        down = [max(latent // 4, 1) * min(2**level, 4) for level in range(levels)] + [latent]
        up = [max(latent >> level, 1) for level in range(levels + 1)]
        half, blocks = max(latent // 2, 1), nets.unit_blocks
        generators = {
            "encoder_clinical": Encoder(widths=(half, latent), strided=False, blocks=blocks),
            "encoder_micro": Encoder(widths=down, strided=True, blocks=blocks),
            "decoder_clinical": Decoder(widths=(latent, half), upsample=None, blocks=blocks),
            "decoder_micro": Decoder(widths=up, upsample=nets.unit_upsample, blocks=blocks),
            "shared_encoder": ResidualBlock(latent),
            "shared_decoder": ResidualBlock(latent),
        }
        discriminators = {
            domain: MultiScaleDiscriminator(
                channels=nets.discriminator_channels,
                max_channels=nets.discriminator_max_channels,
                layers=layers,
                scales=scales,
            )
            for domain, layers, scales in (("clinical", 3, 1), ("micro", 4, 3))
        }
        super().__init__(config, nn.ModuleDict(generators), nn.ModuleDict(discriminators))

    def generator_loss(
        self, batch: Tensors, noise: Tensors | None = None
    ) -> tuple[torch.Tensor, Tensors, Tensors]:
        """See `Method`; the codes are "clinical", "micro", "cycle_clinical", "cycle_micro"."""
        with self.autocast(batch["micro"].device):
            images, means = self._everything(batch, noise)
            fakes = {"clinical": images["fake_clinical"], "micro": images["sr"]}
            scores = self.scores(fakes)
        adversarial_terms = adversarial(scores)
        reconstruction, cycle = (
            {
                f"{name}_{domain}": functional.l1_loss(images[f"{name}_{domain}"], batch[domain])
                for domain in DOMAINS
            }
            for name in ("reconstruction", "cycle")
        )
        kl = {f"kl_{name}": kl_loss(mean) for name, mean in means.items()}
        mmsr, mmsr_terms = self.weighted_mmsr(batch, images["sr"], images["fake_clinical"])
        weights = self.config.loss
        loss = (
            total(adversarial_terms.values())
            + weights.reconstruction * total(reconstruction.values())
            + weights.cycle * total(cycle.values())
            + weights.kl * total(kl.values())
            + mmsr
        )
        terms = {**adversarial_terms, **reconstruction, **cycle, **kl, **mmsr_terms}
        terms["generator_loss"] = loss
        watched = watch(batch["clinical"], images["sr"])
        return loss, detached(fakes), detached(terms) | watched

    def _everything(self, batch: Tensors, noise: Tensors | None) -> tuple[Tensors, Tensors]:
        """All images, and the means of all codes by name."""
        means = {domain: self._encode(domain, batch[domain]) for domain in DOMAINS}
        codes = {name: _with_noise(name, mean, noise) for name, mean in means.items()}
        images = {}
        images["reconstruction_clinical"], images["fake_clinical"] = in_one_batch(
            partial(self._decode, "clinical"), codes["clinical"], codes["micro"]
        )
        images["sr"], images["reconstruction_micro"] = in_one_batch(
            partial(self._decode, "micro"), codes["clinical"], codes["micro"]
        )
        again = {
            "cycle_clinical": self._encode("micro", images["sr"]),
            "cycle_micro": self._encode("clinical", images["fake_clinical"]),
        }
        for domain in DOMAINS:
            name = f"cycle_{domain}"
            images[name] = self._decode(domain, _with_noise(name, again[name], noise))
        return images, means | again

    def _encode(self, domain: str, images: torch.Tensor) -> torch.Tensor:
        features = self.generators[f"encoder_{domain}"](images)
        return self.generators["shared_encoder"](features)

    def _decode(self, domain: str, code: torch.Tensor) -> torch.Tensor:
        features = self.generators["shared_decoder"](code)
        return self.generators[f"decoder_{domain}"](features)


def _with_noise(name: str, mean: torch.Tensor, noise: Tensors | None) -> torch.Tensor:
    """A code drawn from N(mean, 1)."""
    if noise is None:
        return mean + torch.randn_like(mean, dtype=torch.float32).to(mean.dtype)
    return mean + noise[name].to(mean.dtype)
