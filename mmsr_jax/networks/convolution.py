"""Convolutions, each computed in the way that suits the chip; always the sums of `lax.conv`.

Images are NHWC, kernels HWIO, padding is the caller's.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mmsr_jax.networks.few_channels import from_few_gradients, to_few, to_few_gradients
from mmsr_jax.networks.minimal_filtering import minimal_filtering, minimal_filtering_gradients

# Below, XLA's own way is as fast, or compiling another takes longer than it saves.
_LEAST_PIXELS = 512
_LEAST_CHANNELS = 16  # for minimal filtering
_FEW_CHANNELS = 4  # one, in blocks of 2 × 2 pixels


def convolve(
    images: Float[Array, "n h w i"], kernel: Float[Array, "a b i o"], stride: int = 1
) -> Float[Array, "n h2 w2 o"]:
    """VALID convolution of stride 1 or 2 with a square kernel."""
    if is_symbolic(images):
        return _direct(images, kernel, stride)
    if stride == 1 and 1 in kernel.shape[2:] and kernel.shape[0] > 1:
        return _in_blocks(images, kernel)
    return _convolve(images, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: Array, kernel: Array, stride: int) -> Array:
    """`_direct`, with another algorithm and other derivatives on a CPU."""
    return lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_on_cpu(images, kernel, stride).convolve, stride=stride),
        default=partial(_direct, stride=stride),
    )


def _forward(images: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(images, kernel, stride), (images, kernel)


def _backward(stride: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *saved,
        cotangent,
        cpu=partial(_on_cpu(*saved, stride).gradients, stride=stride),
        default=partial(_direct_gradients, stride=stride),
    )


_convolve.defvjp(_forward, _backward)


def _direct(images: Array, kernel: Array, stride: int = 1) -> Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _direct_gradients(
    images: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Array, Array]:
    _, pull_back = jax.vjp(partial(_direct, stride=stride), images, kernel)
    return pull_back(cotangent)


def is_symbolic(images: Array) -> bool:
    """In `jax.export`, for images of any size."""
    return not all(isinstance(side, int) for side in images.shape)


class _Algorithm(NamedTuple):
    """A convolution, and its gradients by images and kernel."""

    convolve: Callable[..., Array]
    gradients: Callable[..., tuple[Array, Array]]


def _on_cpu(images: Array, kernel: Array, stride: int) -> _Algorithm:
    size, _, channels_in, channels_out = kernel.shape
    if (
        images.dtype != jnp.float32
        or is_symbolic(images)
        or math.prod(images.shape[:3]) < _LEAST_PIXELS
    ):
        return _Algorithm(_direct, _direct_gradients)
    if channels_in <= _FEW_CHANNELS:
        return _Algorithm(_direct, from_few_gradients)
    if channels_out <= _FEW_CHANNELS and stride == 1:
        return _Algorithm(_to_few, _to_few_gradients)
    channels = min(channels_in * stride**2, channels_out)
    if channels >= _LEAST_CHANNELS and (size, stride) in ((2, 1), (3, 1), (4, 1), (4, 2)):
        return _Algorithm(_filter, _filter_gradients)
    return _Algorithm(_direct, _direct_gradients)


def _to_few(images: Array, kernel: Array, stride: int) -> Array:
    del stride  # 1
    return to_few(images, kernel)


def _to_few_gradients(
    images: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Array, Array]:
    del stride  # 1
    return to_few_gradients(images, kernel, cotangent)


@partial(jax.jit, static_argnames="stride")
def _filter(images: Array, kernel: Array, stride: int) -> Array:
    """Minimal filtering; a stride of 2 is taken into the channels first."""
    if stride == 2:
        images, kernel = _even_blocks(images), _kernel_blocks(kernel)
    return minimal_filtering(images, kernel)


@partial(jax.jit, static_argnames="stride")
def _filter_gradients(
    images: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Array, Array]:
    if stride == 1:
        return minimal_filtering_gradients(images, kernel, cotangent)
    blocks, pull_back = jax.vjp(_even_blocks, images)
    kernel_blocks, pull_kernel_back = jax.vjp(_kernel_blocks, kernel)
    by_blocks, by_kernel = minimal_filtering_gradients(blocks, kernel_blocks, cotangent)
    return *pull_back(by_blocks), *pull_kernel_back(by_kernel)


def _even_blocks(images: Array) -> Array:
    """Blocks of 2 × 2 pixels as channels; a kernel of even size reads no odd last one."""
    height, width = (side - side % 2 for side in images.shape[1:3])
    return space_to_depth(images[:, :height, :width])


def _kernel_blocks(kernel: Array) -> Array:
    return space_to_depth(kernel.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)


def _in_blocks(images: Array, kernel: Array) -> Array:
    """Stride 1 on blocks of 2 × 2 pixels as channels.

    The same sums as one convolution at half the size, from and to four times the channels: a
    convolution from or to one channel leaves most of a matrix unit idle.
    """
    size = kernel.shape[0]
    height, width = (side - size + 1 for side in images.shape[1:3])
    if height % 2 or width % 2:
        return _convolve(images, kernel, 1)
    # One row and column of the last blocks go unread if the kernel's size is even.
    images = jnp.pad(images, ((0, 0), *[(0, side % 2) for side in images.shape[1:3]], (0, 0)))
    taps = jnp.asarray(_taps_of_blocks(size))
    blocks = jnp.einsum("pxis,qyjt,stcd->xyijcpqd", taps, taps, kernel, precision="highest")
    reach, channels_in, channels_out = taps.shape[1], *kernel.shape[2:]
    blocks = blocks.reshape(reach, reach, 4 * channels_in, 4 * channels_out)
    sums = _convolve(space_to_depth(images), blocks.astype(kernel.dtype), 1)
    return depth_to_space(sums[:, : height // 2, : width // 2])


def _taps_of_blocks(size: int) -> np.ndarray:
    """1 where a tap (last axis) for an even or odd output pixel (first) lies in a pixel of a block.

    The axes between are the block, counted from the output's, and the pixel within it.
    """
    taps = np.zeros((2, size // 2 + 1, 2, size), np.float32)
    for output in range(2):
        for tap in range(size):
            block, pixel = divmod(output + tap, 2)
            taps[output, block, pixel, tap] = 1
    return taps


def depth_to_space(features: Float[Array, "n h w 4*c"]) -> Float[Array, "n 2*h 2*w c"]:
    """Channels (row, column, c) to blocks of 2 × 2 pixels."""
    n, height, width, channels = features.shape
    blocks = features.reshape(n, height, width, 2, 2, channels // 4)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, channels // 4)


def space_to_depth(features: Float[Array, "n 2*h 2*w c"]) -> Float[Array, "n h w 4*c"]:
    """Blocks of 2 × 2 pixels to channels (row, column, c)."""
    n, height, width, channels = features.shape
    blocks = features.reshape(n, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // 2, width // 2, 4 * channels)
