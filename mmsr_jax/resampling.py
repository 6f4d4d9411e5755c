"""Between the clinical and the micro grid. Images are NHWC; grids share their outer edges."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BICUBIC_REACH_PX = 2.5  # how far a bicubically upsampled pixel sees, in input pixels


def average_pool(
    images: Float[Array, "n h w c"], scale: int
) -> Float[Array, "n h/{scale} w/{scale} c"]:
    """F of the paper: means over `scale` × `scale` blocks.

    Raises:
      ValueError: if the height or the width is not a multiple of `scale`.
    """
    n, height, width, channels = images.shape
    if height % scale or width % scale:
        raise ValueError(f"images of {height}x{width} pixels cannot be pooled by {scale}")
    blocks = images.reshape(n, height // scale, scale, width // scale, scale, channels)
    return blocks.mean(axis=(2, 4))


def nearest_upsample(
    images: Float[Array, "n h w c"], scale: int
) -> Float[Array, "n h*{scale} w*{scale} c"]:
    """G of the paper: every pixel repeated into a `scale` × `scale` block."""
    return jnp.repeat(jnp.repeat(images, scale, axis=1), scale, axis=2)


def bicubic_upsample(
    images: Float[Array, "n h w c"], scale: int
) -> Float[Array, "n h*{scale} w*{scale} c"]:
    """Cubic convolution (Keys 1981) about pixel centres."""
    n, height, width, channels = images.shape
    return jax.image.resize(images, (n, height * scale, width * scale, channels), "cubic")
