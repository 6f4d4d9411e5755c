"""Least-squares adversarial losses (Mao et al. 2017), as CycleGAN uses them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def lsgan_generator_loss(scores_of_fakes: Float[Array, "..."]) -> Float[Array, ""]:
    """Mean squared distance of a discriminator's scores of fakes from 1, the score of "real"."""
    return jnp.mean((jnp.asarray(scores_of_fakes, jnp.float32) - 1.0) ** 2)


def lsgan_discriminator_loss(
    scores_of_reals: Float[Array, "..."], scores_of_fakes: Float[Array, "..."]
) -> Float[Array, ""]:
    """Half the sum of the mean squared distances: of reals from 1 and of fakes from 0."""
    reals = jnp.mean((jnp.asarray(scores_of_reals, jnp.float32) - 1.0) ** 2)
    fakes = jnp.mean(jnp.asarray(scores_of_fakes, jnp.float32) ** 2)
    return 0.5 * (reals + fakes)
