"""Layers that the networks share. Images are NHWC; parameters are float32 in any compute dtype."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from mmsr_jax.networks.convolution import convolve, depth_to_space
from mmsr_jax.networks.in_blocks import (
    PadMode,
    Taps,
    convolve_blocks,
    strided_taps,
    upsampled_taps,
)

Norm = Literal["pixel", "instance", "none"]
Upsample = Literal["nearest", "smooth", "shuffle"]

gan_init = nnx.initializers.normal(0.02)
he_init = nnx.initializers.he_normal()


def leaky_relu(features: Float[Array, "..."]) -> Float[Array, "..."]:
    """Leaky rectifier of slope 0.2, the activation of all but the canonical CycleGAN generator."""
    return nnx.leaky_relu(features, 0.2)


def normalise(features: Float[Array, "n h w c"], norm: Norm) -> Float[Array, "n h w c"]:
    """Normalise features, in float32 whatever their dtype, without learnt scale or offset.

    "pixel" divides each pixel's vector by its root mean square over channels (local: a tile gives
    what the whole image gives); "instance" standardises each channel over the image, with the
    exact variance; "none" leaves the features alone.

    Raises:
      ValueError: on an unknown norm.
    """
    values = jnp.asarray(features, jnp.float32)
    if norm == "pixel":
        values = values * lax.rsqrt(jnp.mean(values**2, axis=-1, keepdims=True) + 1e-6)
    elif norm == "instance":
        centred = values - values.mean(axis=(1, 2), keepdims=True)
        values = centred * lax.rsqrt(jnp.mean(centred**2, axis=(1, 2), keepdims=True) + 1e-5)
    elif norm != "none":
        raise ValueError(f"norm={norm!r}: must be 'pixel', 'instance' or 'none'")
    return values.astype(features.dtype)


class Conv(nnx.Module):
    """Convolution with its own padding: `padding` pixels a side, reflected or zero.

    Padding by reflection keeps a constant image constant up to its border.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        *,
        stride: int = 1,
        padding: int,
        pad_mode: Literal["reflect", "constant"] = "reflect",
        kernel_init: nnx.Initializer = gan_init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.padding = padding
        self.pad_mode: PadMode = pad_mode
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            (size, size),
            strides=stride,
            padding="VALID",
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=jnp.float32,
            conv_general_dilated=_convolve,
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Convolve `images`; smaller than the padding, they are reflected repeatedly."""
        sides = (self.padding, self.padding)
        return self.conv(jnp.pad(images, ((0, 0), sides, sides, (0, 0)), mode=self.pad_mode))

    def in_blocks(self, blocks: Float[Array, "n h w c"], block_px: int) -> Float[Array, "n h w c2"]:
        """The same in blocks of pixels: outputs of `block_px` a side, inputs of stride times it."""
        taps = strided_taps(self.conv.kernel_size[0], self.stride, self.padding, block_px)
        return _conv_in_blocks(blocks, self.conv, taps, self.pad_mode)


class ImageHead(nnx.Module):
    """reflect conv7 → one channel, × 0.1, tanh: features to an image in [-1, 1], float32.

    Adam moves thousands of head weights by the learning rate at once; without the factor a few
    first steps saturate the tanh, and the output stays blank for good.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv(channels, 1, 7, padding=3, kernel_init=he_init, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h w 1"]:
        """The image that `features` show."""
        return _image(self.conv(features))

    def in_blocks(self, blocks: Float[Array, "n h w c"], block_px: int) -> Float[Array, "n h w c2"]:
        """The image in blocks of `block_px` pixels a side, as the features."""
        return _image(self.conv.in_blocks(blocks, block_px))


def _image(features: Array) -> Array:
    return jnp.tanh(0.1 * features.astype(jnp.float32))


class ResidualBlock(nnx.Module):
    """x + scale · norm(conv3(act(norm(conv3(x))))).

    Without a norm the residual is scaled by 0.1, as He-initialised residuals otherwise grow the
    features block by block.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: Norm,
        activation: Callable[[Array], Array] = leaky_relu,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.norm: Norm = norm
        self.activation = activation
        conv = partial(
            Conv,
            channels,
            channels,
            3,
            padding=1,
            kernel_init=he_init if norm == "none" else gan_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.first, self.second = conv(), conv()

    @property
    def reach_px(self) -> int:
        """How far a feature sees beyond its place, if the norm is local."""
        return self.first.padding + self.second.padding

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Add the block's residual to `features`."""
        residual = self.activation(normalise(self.first(features), self.norm))
        residual = normalise(self.second(residual), self.norm)
        return features + (0.1 * residual if self.norm == "none" else residual)


class UpsampleBlock(nnx.Module):
    """Twice the height and width, then the activation.

    "nearest" repeats pixels before a conv3; "smooth" interpolates linearly, which is the same
    low-passed with [1, 2, 1] / 4 and leaves no grid of repeated pixels; "shuffle" is a conv3 to
    four times the channels and depth-to-space, initialised so that it starts as nearest (ICNR,
    Aitken et al. 2017). All three keep pixel blocks aligned with average pooling.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kind: Upsample,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in ("nearest", "smooth", "shuffle"):
            raise ValueError(f"upsample={kind!r}: must be 'nearest', 'smooth' or 'shuffle'")
        self.kind: Upsample = kind
        self.channels_out = channels_out
        shuffled = kind == "shuffle"
        self.conv = Conv(
            channels_in,
            channels_out * (4 if shuffled else 1),
            3,
            padding=1,
            kernel_init=_icnr_init if shuffled else he_init,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def reach_px(self) -> float:
        """How far an output pixel sees beyond its place, in input pixels."""
        return {"shuffle": 1.0, "nearest": 0.5, "smooth": 1.0}[self.kind]

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c2"]:
        """Double the size of `features`."""
        if self.kind == "shuffle":
            return leaky_relu(depth_to_space(self.conv(features)))
        taps = _TAPS_AFTER_UPSAMPLING[self.kind]
        return leaky_relu(_conv_of_upsampled(features, self.conv.conv, taps))

    def in_blocks(self, blocks: Float[Array, "n h w c"], block_px: int) -> Float[Array, "n h w c2"]:
        """The same from blocks of `block_px` / 2 pixels a side to blocks of `block_px`."""
        if self.kind != "shuffle":
            taps = upsampled_taps(_TAPS_AFTER_UPSAMPLING[self.kind], block_px)
            return leaky_relu(_conv_in_blocks(blocks, self.conv.conv, taps, "edge"))
        features = leaky_relu(self.conv.in_blocks(blocks, block_px // 2))
        n, height, width, _ = features.shape
        pixels = features.reshape(n, height, width, block_px // 2, block_px // 2, 2, 2, -1)
        return pixels.transpose(0, 1, 2, 3, 5, 4, 6, 7).reshape(features.shape)


class TransposedConv(nnx.Module):
    """Transposed conv3 of stride 2 to exactly twice the size, centred on even output pixels."""

    def __init__(self, channels_in: int, channels_out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            (3, 3),
            kernel_init=gan_init,
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, features: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w c2"]:
        """Double the size of `features`."""
        taps = _TAPS_AFTER_UPSAMPLING["transposed"]
        return _conv_of_upsampled(features, self.conv, taps, pad_mode="constant")


# How much of each tap at double size (last axis) falls on each of the pixels that an output pixel
# sees at the original size (middle axis), for even and odd output pixels (first axis). A transposed
# convolution has zeros between the pixels instead.
_TAPS_AFTER_UPSAMPLING: dict[str, np.ndarray] = {
    "nearest": np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32),
    "smooth": np.array(
        [[[3, 1, 0], [1, 3, 3], [0, 0, 1]], [[1, 0, 0], [3, 3, 1], [0, 1, 3]]], np.float32
    )
    / 4,
    "transposed": np.array([[[0, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]], np.float32),
}


def _conv_of_upsampled(
    features: Array,
    conv: nnx.Conv,
    taps: np.ndarray,
    pad_mode: Literal["edge", "constant"] = "edge",
) -> Array:
    """conv3 of upsampled features, computed before upsampling; by default with repeated borders.

    An output pixel sees only 2 × 2 (nearest) or 3 × 3 (smooth) different pixels: one convolution of
    that size to four times the channels at the original size gives the same sums with fewer
    products, and nothing is computed at double size but the rearrangement.
    """
    (n, height, width, _), dtype = features.shape, conv.dtype
    kernel, size = jnp.asarray(conv.kernel), taps.shape[1]
    phases = jnp.einsum("apk,bql,klio->pqiabo", taps, taps, kernel, precision="highest")
    channels, shift = kernel.shape[3], 3 - size  # a phase of 2 taps begins at its own pixel
    padded = jnp.pad(features.astype(dtype), ((0, 0), (1, 1), (1, 1), (0, 0)), mode=pad_mode)
    sums = convolve(padded, phases.reshape(size, size, -1, 4 * channels).astype(dtype))
    sums = sums.reshape(n, height + shift, width + shift, 2, 2, channels)

    def phase(a: int, b: int) -> Array:
        return sums[:, a * shift : a * shift + height, b * shift : b * shift + width, a, b]

    rows = [jnp.stack([phase(a, 0), phase(a, 1)], axis=3) for a in (0, 1)]
    images = jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, channels)
    return images + jnp.asarray(conv.bias).astype(dtype)


def _conv_in_blocks(blocks: Array, conv: nnx.Conv, taps: Taps, mode: PadMode) -> Array:
    sums = convolve_blocks(blocks.astype(conv.dtype), jnp.asarray(conv.kernel), taps, mode)
    return sums + jnp.tile(jnp.asarray(conv.bias).astype(conv.dtype), len(taps.weights) ** 2)


def _convolve(
    images: Array, kernel: Array, strides: Sequence[int], *_: object, **__: object
) -> Array:
    """`convolve` in the place of `lax.conv_general_dilated`."""
    return convolve(images, kernel, strides[0])


def _icnr_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    return jnp.tile(he_init(key, (*shape[:-1], shape[-1] // 4), dtype), 4)
