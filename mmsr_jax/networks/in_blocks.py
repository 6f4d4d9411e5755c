"""Convolutions between images kept as blocks of pixels: (n, h / r, w / r, r · r · channels).

The same sums as on pixels, with r times fewer rows and columns and r² times more channels, in the
order (row, column, channel). A TPU stores and multiplies 128 channels at a time: an image of 8
channels takes it as much memory and time as one of 128.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

PadMode = Literal["reflect", "edge", "constant"]


class Taps(NamedTuple):
    """Along one axis: what a block of outputs sees of the blocks of inputs.

    Attributes:
      weights: (pixels of an output block, input blocks, pixels of an input block, taps).
      before: how many of the input blocks lie before the output's own.
      padding: pixels beyond the border that are seen.
    """

    weights: np.ndarray
    before: int
    padding: int


def strided_taps(size: int, stride: int, padding: int, block_px: int) -> Taps:
    """Of a convolution from blocks of `stride` · `block_px` pixels a side to blocks of `block_px`.

    Args:
      size: of the kernel.
      stride: of the convolution.
      padding: pixels at each border.
      block_px: of the outputs.
    """
    seen = (
        (pixel, tap, pixel * stride + tap - padding, 1.0)
        for pixel in range(block_px)
        for tap in range(size)
    )
    return _taps(seen, (block_px, block_px * stride, size), padding)


def upsampled_taps(phases: np.ndarray, block_px: int) -> Taps:
    """Of conv3 after doubling the size, from blocks of `block_px` / 2 pixels to `block_px`.

    Args:
      phases: (even and odd outputs, 2 or 3 pixels seen at the original size, taps): the share of
        each tap that falls on each pixel.
      block_px: of the outputs.
    """
    pixels_seen = phases.shape[1]
    seen = (
        (pixel, tap, pixel // 2 + (pixel % 2) * (3 - pixels_seen) - 1 + place, share)
        for pixel in range(block_px)
        for (place, tap), share in np.ndenumerate(phases[pixel % 2])
        if share
    )
    return _taps(seen, (block_px, block_px // 2, phases.shape[2]), 1)


def _taps(
    seen: Iterator[tuple[int, int, int, float]], shape: tuple[int, int, int], padding: int
) -> Taps:
    """From (output pixel, tap, position of the input pixel, weight); `shape` without the blocks."""
    listed = list(seen)
    blocks = [position // shape[1] for _, _, position, _ in listed]
    weights = np.zeros((shape[0], max(blocks) - min(blocks) + 1, *shape[1:]), np.float32)
    for (pixel, tap, position, weight), block in zip(listed, blocks, strict=True):
        weights[pixel, block - min(blocks), position % shape[1], tap] += weight
    return Taps(weights, -min(blocks), padding)


def convolve_blocks(
    blocks: Float[Array, "n h w i"],
    kernel: Float[Array, "a b c d"],
    taps: Taps,
    mode: PadMode,
) -> Float[Array, "n h w o"]:
    """The blocks of a convolution's outputs, the border padded as by `jnp.pad`'s `mode`.

    The image must have more pixels a side than are seen beyond the border.
    """
    outputs, reach, inputs, _ = taps.weights.shape
    channels_in, channels_out = kernel.shape[2:]
    weights = jnp.einsum(
        "aypt,bxqu,tuio->yxpqiabo", taps.weights, taps.weights, kernel, precision="highest"
    ).reshape(reach, reach, inputs**2 * channels_in, outputs**2 * channels_out)
    sides = (taps.before, reach - 1 - taps.before)
    if mode != "constant":
        blocks = _padded(blocks, inputs, sides, taps.padding, mode)
    return lax.conv_general_dilated(
        blocks,
        weights.astype(blocks.dtype),
        (1, 1),
        [sides if mode == "constant" else (0, 0)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def regroup(
    blocks: Float[Array, "n h w c"], block_px: int, wanted_px: int
) -> Float[Array, "n h2 w2 c2"]:
    """Blocks of `wanted_px` pixels a side instead of `block_px`; one divides the other."""
    n, height, width, channels = blocks.shape
    small, channels = min(block_px, wanted_px), channels // block_px**2
    times = max(block_px, wanted_px) // small
    if wanted_px > block_px:
        height, width = height // times, width // times
        split = blocks.reshape(n, height, times, width, times, small, small, channels)
        shape = (n, height, width, wanted_px**2 * channels)
    else:
        split = blocks.reshape(n, height, width, times, small, times, small, channels)
        shape = (n, height * times, width * times, wanted_px**2 * channels)
    return split.transpose(0, 1, 3, 2, 5, 4, 6, 7).reshape(shape)


def _padded(
    blocks: Array, block_px: int, sides: tuple[int, int], padding: int, mode: PadMode
) -> Array:
    """With whole blocks around, in which the pixels that are seen repeat the image."""
    for axis in (1, 2):
        near = min(-(-(padding + 1) // block_px), blocks.shape[axis])
        parts = [blocks]
        if sides[0]:
            lines = _lines(lax.slice_in_dim(blocks, 0, near, axis=axis), block_px, axis)
            lines = _pad(lines, axis, (padding, 0), mode)
            lines = lax.slice_in_dim(lines, 0, padding, axis=axis)
            lines = _pad(lines, axis, (sides[0] * block_px - padding, 0), "constant")
            parts.insert(0, _blocks_of_lines(lines, block_px, axis))
        if sides[1]:
            lines = _lines(lax.slice_in_dim(blocks, -near, None, axis=axis), block_px, axis)
            lines = _pad(lines, axis, (0, padding), mode)
            lines = lax.slice_in_dim(lines, -padding, None, axis=axis)
            lines = _pad(lines, axis, (0, sides[1] * block_px - padding), "constant")
            parts.append(_blocks_of_lines(lines, block_px, axis))
        blocks = jnp.concatenate(parts, axis)
    return blocks


def _lines(blocks: Array, block_px: int, axis: int) -> Array:
    """Along one axis, pixels instead of blocks; what a block has beside goes to the last axes."""
    n, height, width, _ = blocks.shape
    pixels = blocks.reshape(n, height, width, block_px, block_px, -1)
    pixels = jnp.moveaxis(pixels, axis + 2, axis + 1)
    shape = list(pixels.shape)
    shape[axis : axis + 2] = [shape[axis] * block_px]
    return pixels.reshape(shape)


def _blocks_of_lines(lines: Array, block_px: int, axis: int) -> Array:
    """The inverse of `_lines`."""
    shape = list(lines.shape)
    shape[axis : axis + 1] = [shape[axis] // block_px, block_px]
    pixels = jnp.moveaxis(lines.reshape(shape), axis + 1, axis + 2)
    return pixels.reshape(*pixels.shape[:3], -1)


def _pad(lines: Array, axis: int, sides: tuple[int, int], mode: PadMode) -> Array:
    return jnp.pad(lines, [sides if a == axis else (0, 0) for a in range(lines.ndim)], mode=mode)
