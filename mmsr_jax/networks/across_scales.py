"""The layers that cross the scale gap, on a TPU in blocks of pixels (see `in_blocks`).

From 32 × 32 to 256 × 256 pixels and back the channels are few and the pixels many: on pixels, a
TPU's memory and matrix unit would be filled to a quarter by 32 channels and to a sixteenth by 8.
"""

from collections.abc import Sequence

from jax import lax
from jaxtyping import Array, Float

from mmsr_jax.networks.blocks import Conv, ImageHead, UpsampleBlock, leaky_relu
from mmsr_jax.networks.convolution import is_symbolic
from mmsr_jax.networks.in_blocks import regroup

_LANES = 128  # channels that a TPU stores together
_LEAST_PX = 8  # a side of what is computed in blocks; borders are wider than smaller images


def downsample(
    images: Float[Array, "n H W 1"], stem: Conv, strided: Sequence[Conv]
) -> Float[Array, "n h w c"]:
    """A convolution, then some of stride 2, each with its activation."""

    def on_pixels(images: Array) -> Array:
        features = leaky_relu(stem(images))
        for conv in strided:
            features = leaky_relu(conv(features))
        return features

    def in_blocks(images: Array) -> Array:
        features = leaky_relu(stem.in_blocks(regroup(images, 1, 2), 2))
        features = leaky_relu(strided[0].in_blocks(features, 1))
        for conv in strided[1:]:
            features = leaky_relu(conv(features))
        return features

    if not strided or not _fits(images):
        return on_pixels(images)
    return lax.platform_dependent(images, tpu=in_blocks, default=on_pixels)


def upsample_to_image(
    features: Float[Array, "n h w c"], upsampling: Sequence[UpsampleBlock], head: ImageHead
) -> Float[Array, "n H W 1"]:
    """Upsampling blocks, then the image head."""

    def on_pixels(features: Array) -> Array:
        for upsample in upsampling:
            features = upsample(features)
        return head(features)

    def in_blocks(features: Array) -> Array:
        block_px = 1
        for upsample in upsampling:
            wanted_px = min(_block_px(upsample.channels_out), 2 * block_px)
            features = regroup(features, block_px, wanted_px // 2)
            features = upsample.in_blocks(features, wanted_px)
            block_px = wanted_px
        return regroup(head.in_blocks(features, block_px), block_px, 1)

    if not upsampling or is_symbolic(features) or min(features.shape[1:3]) < _LEAST_PX:
        return on_pixels(features)
    return lax.platform_dependent(features, tpu=in_blocks, default=on_pixels)


def convolve_image(images: Float[Array, "n H W 1"], conv: Conv) -> Float[Array, "n h w c"]:
    """A convolution of stride 2 from one channel."""
    if not _fits(images):
        return conv(images)

    def in_blocks(images: Array) -> Array:
        return conv.in_blocks(regroup(images, 1, 2), 1)

    return lax.platform_dependent(images, tpu=in_blocks, default=conv)


def _fits(images: Array) -> bool:
    """Whether the image has whole blocks of 2 × 2 pixels, and enough of them."""
    sides = images.shape[1:3]
    return not is_symbolic(images) and min(sides) >= _LEAST_PX and not any(s % 2 for s in sides)


def _block_px(channels: int) -> int:
    """The smallest blocks of upsampled features that fill the lanes: 2, 4, 8, ..."""
    block_px = 2
    while block_px**2 * channels < _LANES:
        block_px *= 2
    return block_px
