"""The canonical CycleGAN generator, which translates between images of one size."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmsr_jax.networks.blocks import Conv, ResidualBlock, TransposedConv, normalise

_LEVELS = 2


class ResnetGenerator(nnx.Module):
    """Zhu et al. 2017, section 7.2: c7s1-64, d128, d256, residual blocks, u128, u64, c7s1-1.

    Reflection padding around conv7 and in the blocks, instance norm and ReLU after every layer,
    tanh after the last. The shifts of conv3 with stride 2 and of the transposed conv3 cancel out.
    """

    def __init__(
        self, *, channels: int, blocks: int, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        conv = partial(Conv, dtype=dtype, rngs=rngs)
        widths = [channels * 2**level for level in range(_LEVELS + 1)]
        self.stem = conv(1, channels, 7, padding=3)
        self.downsampling = nnx.List(
            [
                conv(width, 2 * width, 3, stride=2, padding=1, pad_mode="constant")
                for width in widths[:-1]
            ]
        )
        self.blocks = nnx.List(
            [
                ResidualBlock(
                    widths[-1], norm="instance", activation=nnx.relu, dtype=dtype, rngs=rngs
                )
                for _ in range(blocks)
            ]
        )
        self.upsampling = nnx.List(
            [
                TransposedConv(2 * width, width, dtype=dtype, rngs=rngs)
                for width in reversed(widths[:-1])
            ]
        )
        self.head = conv(channels, 1, 7, padding=3)

    def __call__(self, images: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
        """Translate images in [-1, 1], sides a multiple of 4; float32 in [-1, 1]."""
        features = _normalised(self.stem(images))
        for downsample in self.downsampling:
            features = _normalised(downsample(features))
        for block in self.blocks:
            features = block(features)
        for upsample in self.upsampling:
            features = _normalised(upsample(features))
        return jnp.tanh(self.head(features).astype(jnp.float32))


def _normalised(features: Array) -> Array:
    return nnx.relu(normalise(features, "instance"))
