"""Reconstruction loss: how far an image that should come back is from where it started."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def reconstruction_loss(
    images: Float[Array, "n h w c"], reconstructed: Float[Array, "n h w c"]
) -> Float[Array, ""]:
    """Mean absolute difference, unweighted, in float32.

    Of an image and its way there and back it is the cycle loss (Zhu et al. 2017, equation 2), of an
    image and its decoded code UNIT's reconstruction, of an image and its translation into the
    domain it is already in the identity loss (section 5.2 there).

    Raises:
      ValueError: if the shapes differ.
    """
    if images.shape != reconstructed.shape:
        raise ValueError(f"shapes differ: {images.shape} and {reconstructed.shape}")
    difference = jnp.asarray(images, jnp.float32) - jnp.asarray(reconstructed, jnp.float32)
    return jnp.mean(jnp.abs(difference))
