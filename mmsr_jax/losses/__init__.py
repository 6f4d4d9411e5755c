"""Losses as pure functions of arrays: no weights inside, no configuration, no networks."""

from mmsr_jax.losses.adversarial import lsgan_discriminator_loss, lsgan_generator_loss
from mmsr_jax.losses.mmsr import mmsr_loss, pixel_loss, structure_loss
from mmsr_jax.losses.reconstruction import cycle_loss
from mmsr_jax.resampling import average_pool, nearest_upsample

__all__ = [
    "average_pool",
    "cycle_loss",
    "lsgan_discriminator_loss",
    "lsgan_generator_loss",
    "mmsr_loss",
    "nearest_upsample",
    "pixel_loss",
    "structure_loss",
]
