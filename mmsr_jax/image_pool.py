"""A pool of past fakes, kept on the device, that steadies the discriminators.

Shrivastava et al. 2017, section 2.3, in the form of the CycleGAN reference: the pool is filled
first; then each fake is, with probability one half, exchanged for a random older one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class ImagePool(NamedTuple):
    """`images` of shape (size, h, w, c), of which the first `filled` are in use."""

    images: Float[Array, "size h w c"]
    filled: Int[Array, ""]


def empty_pool(size: int, image_shape: tuple[int, int, int]) -> ImagePool:
    """A pool for `size` images, of which none is in use."""
    return ImagePool(jnp.zeros((size, *image_shape), jnp.float32), jnp.zeros((), jnp.int32))


def exchange(
    pool: ImagePool, fakes: Float[Array, "n h w c"], key: Array
) -> tuple[ImagePool, Float[Array, "n h w c"]]:
    """Put fakes into the pool one after the other; returns what the discriminator sees instead."""
    size = pool.images.shape[0]

    def one(pool: ImagePool, fake_and_key: tuple[Array, Array]) -> tuple[ImagePool, Array]:
        fake, key = fake_and_key
        swap_key, slot_key = jax.random.split(key)
        filling = pool.filled < size
        swapping = ~filling & jax.random.bernoulli(swap_key)
        slot = jnp.where(filling, pool.filled, jax.random.randint(slot_key, (), 0, size))
        older = pool.images[slot]
        stored = jnp.where(filling | swapping, fake, older)
        seen = jnp.where(swapping, older, fake)
        return ImagePool(pool.images.at[slot].set(stored), jnp.minimum(pool.filled + 1, size)), seen

    return jax.lax.scan(one, pool, (fakes, jax.random.split(key, fakes.shape[0])))
