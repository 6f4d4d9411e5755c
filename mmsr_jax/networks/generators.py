"""SR-CycleGAN's generators: across the scale gap in one direction each."""

import itertools
from typing import Literal, NamedTuple, get_args

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
from mmsr_jax.networks.consistency import CONSISTENT_REACH_PX, consistent
from mmsr_jax.resampling import BICUBIC_REACH_PX, bicubic_upsample

Base = Literal["none", "bicubic", "consistent"]


class SrFeatures(NamedTuple):
    """What G1's trunk hands to its tail, on the clinical grid."""

    features: Float[Array, "n h w c"]
    clinical: Float[Array, "n h w 1"]


class SrResnet(nnx.Module):
    """G1, clinical to micro: a trunk of residual blocks at low resolution and an upsampling tail.

    reflect conv7 → `channels`; `blocks` residual blocks; conv3; log2(scale) upsampling blocks with
    `tail_channels`, then half as many each; the image head. No norm before the first residual, so
    the absolute intensity of the scan stays readable (an instance norm after the stem removes it).

    The image is the network's ("none"), is added to the bicubically upsampled scan ("bicubic"), or
    is changed until it agrees with the scan ("consistent").
    """

    def __init__(
        self,
        *,
        channels: int,
        blocks: int,
        tail_channels: int,
        scale: int,
        norm: Norm,
        upsample: Upsample,
        base: Base = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if base not in get_args(Base):
            raise ValueError(f"base={base!r}: must be 'none', 'bicubic' or 'consistent'")
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"scale={scale}: must be a power of two from 2")
        levels = scale.bit_length() - 1
        self.scale = scale
        self.norm: Norm = norm
        self.base: Base = base
        self.stem = Conv(1, channels, 7, padding=3, kernel_init=he_init, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [ResidualBlock(channels, norm=norm, dtype=dtype, rngs=rngs) for _ in range(blocks)]
        )
        self.post = Conv(
            channels, channels, 3, padding=1, kernel_init=he_init, dtype=dtype, rngs=rngs
        )
        widths = [channels, *(max(tail_channels >> level, 1) for level in range(levels))]
        self.upsampling = nnx.List(
            [
                UpsampleBlock(wide, narrow, kind=upsample, dtype=dtype, rngs=rngs)
                for wide, narrow in itertools.pairwise(widths)
            ]
        )
        self.head = ImageHead(widths[-1], dtype=dtype, rngs=rngs)

    @property
    def trunk_reach_px(self) -> float | None:
        """How far the trunk's features see, in clinical pixels; None: over the whole image."""
        if self.norm == "instance":
            return None
        blocks = sum(block.reach_px for block in self.blocks)
        return self.stem.padding + blocks + self.post.padding

    @property
    def tail_reach_px(self) -> float:
        """How far an output pixel sees in what the trunk gives, in clinical pixels."""
        upsampling = sum(block.reach_px / 2**level for level, block in enumerate(self.upsampling))
        tail = upsampling + self.head.conv.padding / self.scale
        if self.base == "consistent":
            return tail + CONSISTENT_REACH_PX
        return max(tail, BICUBIC_REACH_PX) if self.base == "bicubic" else tail

    def __call__(self, clinical: Float[Array, "n h w 1"]) -> Float[Array, "n h*s w*s 1"]:
        """Super-resolve clinical images in [-1, 1]; float32 in [-1, 1] whatever the dtype."""
        return self.tail(self.trunk(clinical))

    def trunk(self, clinical: Float[Array, "n h w 1"]) -> SrFeatures:
        """All that is computed at low resolution, and the scan for the base."""
        features = leaky_relu(self.stem(clinical))
        for block in self.blocks:
            features = block(features)
        return SrFeatures(self.post(features), clinical)

    def tail(self, trunk: SrFeatures) -> Float[Array, "n h*s w*s 1"]:
        """The image, from what the trunk gave."""
        features, clinical = trunk
        image = upsample_to_image(features, self.upsampling, self.head)
        if self.base == "bicubic":
            image = jnp.clip(image + bicubic_upsample(clinical, self.scale), -1.0, 1.0)
        if self.base == "consistent":
            image = consistent(image, clinical)
        return image


class DownResnet(nnx.Module):
    """G2, micro to clinical: strided convolutions, then residual blocks at low resolution.

    conv7 → `channels`; log2(scale) conv4 of stride 2 with at most 4 × `channels`; `blocks`
    residual blocks; the image head. Needed in training only.
    """

    def __init__(
        self,
        *,
        channels: int,
        blocks: int,
        scale: int,
        norm: Norm,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        levels = scale.bit_length() - 1
        self.stem = Conv(1, channels, 7, padding=3, kernel_init=he_init, dtype=dtype, rngs=rngs)
        widths = [channels * min(2**level, 4) for level in range(levels + 1)]
        self.downsampling = nnx.List(
            [
                Conv(
                    narrow,
                    wide,
                    4,
                    stride=2,
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
        self.head = ImageHead(widths[-1], dtype=dtype, rngs=rngs)

    def __call__(self, micro: Float[Array, "n H W 1"]) -> Float[Array, "n H/s W/s 1"]:
        """Clinical-like images of micro images in [-1, 1]; float32 in [-1, 1]."""
        features = downsample(micro, self.stem, self.downsampling)
        for block in self.blocks:
            features = block(features)
        return self.head(features)
