"""Reconstruction losses: how far an image that went there and back is from where it started."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def cycle_loss(
    images: Float[Array, "n h w c"], reconstructed: Float[Array, "n h w c"]
) -> Float[Array, ""]:
    """Mean absolute difference (Zhu et al. 2017, equation 2), unweighted, in float32.

    Raises:
      ValueError: if the shapes differ.
    """
    if images.shape != reconstructed.shape:
        raise ValueError(f"shapes differ: {images.shape} and {reconstructed.shape}")
    difference = jnp.asarray(images, jnp.float32) - jnp.asarray(reconstructed, jnp.float32)
    return jnp.mean(jnp.abs(difference))
