"""Discriminators: a score for every patch of an image, at one scale or at several."""

import itertools
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmsr_jax.networks.across_scales import convolve_image
from mmsr_jax.networks.blocks import Conv, he_init, leaky_relu, normalise


class PatchDiscriminator(nnx.Module):
    """PatchGAN (Isola et al. 2017).

    conv4 of stride 2 without a norm, then `strided` − 1 of stride 2, one of stride 1, the score.
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
        features = leaky_relu(convolve_image(images, self.layers[0]))
        for layer in self.layers[1:]:
            features = leaky_relu(normalise(layer(features), "instance"))
        return self.head(features).astype(jnp.float32)


class MultiScaleDiscriminator(nnx.Module):
    """SR-UNIT's discriminator: the same small network at several scales of an image.

    Each has `layers` conv4 of stride 2, reflection padding, no norm, LeakyReLU 0.2, channels that
    double from `channels` up to `max_channels`, and a 1 × 1 head. Between scales the image is
    averaged over 3 × 3 pixels with stride 2; the border counts no padding.
    """

    def __init__(
        self,
        *,
        channels: int,
        max_channels: int,
        layers: int,
        scales: int,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = [1, *(min(channels * 2**level, max_channels) for level in range(layers))]
        conv = partial(Conv, kernel_init=he_init, dtype=dtype, rngs=rngs)
        self.scales = nnx.List(
            [
                nnx.List(
                    [
                        *(
                            conv(narrow, wide, 4, stride=2, padding=1)
                            for narrow, wide in itertools.pairwise(widths)
                        ),
                        conv(widths[-1], 1, 1, padding=0),
                    ]
                )
                for _ in range(scales)
            ]
        )

    def __call__(self, images: Float[Array, "n h w 1"]) -> tuple[Float[Array, "n _ _ 1"], ...]:
        """Scores at every scale, finest first, float32, of images in [-1, 1]."""
        scores = []
        for index, (*layers, head) in enumerate(self.scales):
            if index:
                images = nnx.avg_pool(images, (3, 3), (2, 2), ((1, 1), (1, 1)), False)
            features = leaky_relu(convolve_image(images, layers[0]))
            for layer in layers[1:]:
                features = leaky_relu(layer(features))
            scores.append(head(features).astype(jnp.float32))
        return tuple(scores)
