"""Pools of past fakes, kept on the device, that steady the discriminators.

Shrivastava et al. 2017, section 2.3, in the form of the CycleGAN reference: a pool is filled
first; then each fake is, with probability one half, exchanged for a random older one. The reference
has one image a step and one pool. Here each row of the batch has a pool of its own, so that rows
may lie on any number of devices: what a row sees depends on its own past and its own key alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class ImagePool(NamedTuple):
    """`images` of shape (n, size, h, w, c) for n rows; the first `filled` of each are in use."""

    images: Float[Array, "n size h w c"]
    filled: Int[Array, ""]


def empty_pool(total: int, rows: int, image_shape: tuple[int, int, int]) -> ImagePool:
    """Room for `total` images, rounded up to equally many a row, of which none is in use."""
    size = -(-total // rows)
    return ImagePool(jnp.zeros((rows, size, *image_shape), jnp.float32), jnp.zeros((), jnp.int32))


def exchange(
    pool: ImagePool, fakes: Float[Array, "n h w c"], key: Array
) -> tuple[ImagePool, Float[Array, "n h w c"]]:
    """Put each row's fake into its pool; returns what the discriminator sees instead."""
    rows, size = pool.images.shape[:2]
    filling = pool.filled < size

    def choose(key: Array) -> tuple[Bool[Array, ""], Int[Array, ""]]:
        swap_key, slot_key = jax.random.split(key)
        slot = jax.random.randint(slot_key, (), 0, size)
        return ~filling & jax.random.bernoulli(swap_key), jnp.where(filling, pool.filled, slot)

    def one(images: Array, fake: Array, swapping: Array, slot: Array) -> tuple[Array, Array]:
        older = images[slot]
        stored = jnp.where(filling | swapping, fake, older)
        return images.at[slot].set(stored), jnp.where(swapping, older, fake)

    images, seen = jax.vmap(one)(pool.images, fakes, *jax.vmap(choose)(jax.random.split(key, rows)))
    return ImagePool(images, jnp.minimum(pool.filled + 1, size)), seen
