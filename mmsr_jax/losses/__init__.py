"""Losses as pure functions of arrays: no weights inside, no configuration, no networks."""

from mmsr_jax.losses.adversarial import lsgan_discriminator_loss, lsgan_generator_loss
from mmsr_jax.losses.latent import kl_loss
from mmsr_jax.losses.mmsr import mmsr_loss, pixel_loss, structure_loss
from mmsr_jax.losses.reconstruction import reconstruction_loss
from mmsr_jax.resampling import average_pool, nearest_upsample

__all__ = [
    "average_pool",
    "kl_loss",
    "lsgan_discriminator_loss",
    "lsgan_generator_loss",
    "mmsr_loss",
    "nearest_upsample",
    "pixel_loss",
    "reconstruction_loss",
    "structure_loss",
]
