"""PatchGAN discriminators (Isola et al. 2017): a score for every patch of an image."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmsr_jax.networks.blocks import Conv, leaky_relu, normalise


class PatchDiscriminator(nnx.Module):
    """conv4 of stride 2 without a norm, then `strided` − 1 of stride 2, one of stride 1, the score.

    Channels double from `channels` up to `max_channels`; instance norm; LeakyReLU 0.2. Three
    strided layers see 70 × 70 pixels (micro), two see 34 × 34 (clinical).
    """

    def __init__(
        self,
        *,
        channels: int,
        max_channels: int,
        strided: int,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = [1, *(min(channels * 2**level, max_channels) for level in range(strided + 1))]
        self.layers = nnx.List(
            [
                Conv(
                    narrow,
                    wide,
                    4,
                    stride=2 if level < strided else 1,
                    padding=1,
                    pad_mode="constant",
                    dtype=dtype,
                    rngs=rngs,
                )
                for level, (narrow, wide) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.head = Conv(widths[-1], 1, 4, padding=1, pad_mode="constant", dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "n h w 1"]) -> Float[Array, "n h2 w2 1"]:
        """Scores, float32, of images in [-1, 1]; 1 is the target of real ones."""
        features = leaky_relu(self.layers[0](images))
        for layer in self.layers[1:]:
            features = leaky_relu(normalise(layer(features), "instance"))
        return self.head(features).astype(jnp.float32)
