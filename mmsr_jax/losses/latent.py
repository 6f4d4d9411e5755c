"""Losses of latent codes."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def kl_loss(mean: Float[Array, "..."]) -> Float[Array, ""]:
    """Divergence of N(`mean`, 1) from N(0, 1) up to a factor ½: the mean of `mean`², float32.

    Source: Liu et al. 2017 (UNIT), equation 3, for a posterior of fixed unit variance.
    """
    return jnp.mean(jnp.asarray(mean, jnp.float32) ** 2)
