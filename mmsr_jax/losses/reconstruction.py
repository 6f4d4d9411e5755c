"""Reconstruction loss: how far an image that should come back is from where it started."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmsr_jax.losses.checks import checked_pair


def reconstruction_loss(
    images: Float[Array, "n h w c"], reconstructed: Float[Array, "n h w c"]
) -> Float[Array, ""]:
    """Mean absolute difference of images in [-1, 1], unweighted, in float32.

    Of an image and its way there and back it is the cycle loss (Zhu et al. 2017, equation 2), of an
    image and its decoded code UNIT's reconstruction, of an image and its translation into the
    domain it is already in the identity loss (section 5.2 there).

    Raises:
      ValueError: on images that are not NHWC of one shape, or on concrete values outside [-1, 1].
    """
    images, reconstructed = checked_pair(images, reconstructed)
    return jnp.mean(jnp.abs(images - reconstructed))
