"""SR-UNIT's networks: encoders to, and decoders from, one latent grid at clinical resolution."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmsr_jax.networks.across_scales import downsample, upsample_to_image
from mmsr_jax.networks.blocks import (
    Conv,
    ImageHead,
    Norm,
    ResidualBlock,
    Upsample,
    UpsampleBlock,
    he_init,
    leaky_relu,
)


class Encoder(nnx.Module):
    """One image to features: conv7, further convolutions, residual blocks.

    `widths` are the channels after conv7 and after each further convolution: conv4 of stride 2
    if `strided`, else conv3. No norm before the residual blocks, so that the absolute intensity
    stays readable.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        strided: bool,
        blocks: int,
        norm: Norm,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.strided = strided
        size, stride = (4, 2) if strided else (3, 1)
        self.stem = Conv(1, widths[0], 7, padding=3, kernel_init=he_init, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            [
                Conv(
                    narrow,
                    wide,
                    size,
                    stride=stride,
                    padding=1,
                    kernel_init=he_init,
                    dtype=dtype,
                    rngs=rngs,
                )
                for narrow, wide in itertools.pairwise(widths)
            ]
        )
        self.blocks = nnx.List(
            [ResidualBlock(widths[-1], norm=norm, dtype=dtype, rngs=rngs) for _ in range(blocks)]
        )

    @property
    def reach_px(self) -> int:
        """How far a feature sees in the image, if no convolution is strided and the norm local."""
        convs = sum(conv.padding for conv in (self.stem, *self.convs))
        return convs + sum(block.reach_px for block in self.blocks)

    def __call__(self, images: Float[Array, "n h w 1"]) -> Float[Array, "n h2 w2 c"]:
        """Features of images in [-1, 1]."""
        if self.strided:
            features = downsample(images, self.stem, self.convs)
        else:
            features = leaky_relu(self.stem(images))
            for conv in self.convs:
                features = leaky_relu(conv(features))
        for block in self.blocks:
            features = block(features)
        return features


class Decoder(nnx.Module):
    """Features to one image: residual blocks, then upsampling blocks or conv3, the image head.

    `widths` are the channels of the residual blocks and after each further layer: an upsampling
    block of the kind `upsample`, or conv3 if that is None.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        upsample: Upsample | None,
        blocks: int,
        norm: Norm,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(
            [ResidualBlock(widths[0], norm=norm, dtype=dtype, rngs=rngs) for _ in range(blocks)]
        )
        pairs = list(itertools.pairwise(widths))
        self.upsampling = nnx.List(
            [UpsampleBlock(*pair, kind=upsample, dtype=dtype, rngs=rngs) for pair in pairs]
            if upsample
            else []
        )
        self.convs = nnx.List(
            []
            if upsample
            else [
                Conv(*pair, 3, padding=1, kernel_init=he_init, dtype=dtype, rngs=rngs)
                for pair in pairs
            ]
        )
        self.head = ImageHead(widths[-1], dtype=dtype, rngs=rngs)

    @property
    def trunk_reach_px(self) -> int:
        """How far the trunk's features see in its input, if the norm is local."""
        return sum(block.reach_px for block in self.blocks)

    @property
    def tail_reach_px(self) -> float:
        """How far a pixel sees in what the trunk gives, in features."""
        upsampling = sum(block.reach_px / 2**level for level, block in enumerate(self.upsampling))
        convs = sum(conv.padding for conv in self.convs)
        return upsampling + convs + self.head.conv.padding / 2 ** len(self.upsampling)

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 1"]:
        """The image, float32 in [-1, 1], that `features` show."""
        return self.tail(self.trunk(features))

    def trunk(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The residual blocks."""
        for block in self.blocks:
            features = block(features)
        return features

    def tail(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 1"]:
        """The image, from what the trunk gave."""
        if self.upsampling:
            return upsample_to_image(features, self.upsampling, self.head)
        for conv in self.convs:
            features = leaky_relu(conv(features))
        return self.head(features)
