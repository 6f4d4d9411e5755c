"""Convolutions, each computed in the way that suits the chip; always the sums of `lax.conv`.

Images are NHWC, kernels HWIO, padding is the caller's.
"""

import functools
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Points at which a minimal filtering algorithm evaluates its polynomials, beside infinity.
_POINTS = (0.0, 1.0, -1.0, 2.0)
_TILE_PX = 2  # of outputs; larger ones save more products and lose digits
# Below, XLA's own way is as fast, or compiling another takes longer than it saves.
_LEAST_PIXELS = 32**2
_LEAST_PRODUCTS = 512  # a pixel and tap
_LEAST_CHANNELS = 64  # for minimal filtering


def convolve(
    images: Float[Array, "n h w i"], kernel: Float[Array, "a b i o"], stride: int = 1
) -> Float[Array, "n h2 w2 o"]:
    """VALID convolution of stride 1 or 2 with a square kernel."""
    if _is_symbolic(images):
        return _direct(images, kernel, stride)
    if stride == 1 and 1 in kernel.shape[2:] and kernel.shape[0] > 1:
        return _in_blocks(images, kernel)
    return _convolve(images, kernel, stride)


def fast_in_loops(images: Array, kernel: Array) -> bool:
    """Whether `convolve` is as fast in a loop: XLA's own is not, on a CPU (jaxlib 0.10.2)."""
    plain = _on_cpu(images, kernel, 1).convolve is _direct and images.dtype == jnp.float32
    return jax.default_backend() != "cpu" or not plain


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


def _is_symbolic(images: Array) -> bool:
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
        or _is_symbolic(images)
        or math.prod(images.shape[:3]) < _LEAST_PIXELS
        or channels_in * channels_out < _LEAST_PRODUCTS
    ):
        return _Algorithm(_direct, _direct_gradients)
    enough_channels = min(channels_in * stride**2, channels_out) >= _LEAST_CHANNELS
    if enough_channels and (size, stride) in ((3, 1), (4, 1), (4, 2)):
        return _Algorithm(_filter, _filter_gradients)
    return _Algorithm(_direct, _gradients_by_taps)


@partial(jax.jit, static_argnames="stride")
def _gradients_by_taps(
    images: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Array, Array]:
    """That of the kernel as one matrix product a tap.

    XLA makes it a convolution with the batch as channels, several times slower on a CPU.
    """
    _, pull_back = jax.vjp(lambda images: _direct(images, kernel, stride), images)
    size, _, *channels = kernel.shape
    ends = [stride * (side - 1) + 1 for side in cotangent.shape[1:3]]
    taps = [
        jnp.einsum(
            "nhwi,nhwo->io",
            images[:, y : y + ends[0] : stride, x : x + ends[1] : stride],
            cotangent,
        )
        for y in range(size)
        for x in range(size)
    ]
    return *pull_back(cotangent), jnp.stack(taps).reshape(size, size, *channels)


@partial(jax.jit, static_argnames="stride")
def _filter(images: Array, kernel: Array, stride: int) -> Array:
    """Winograd's minimal filtering; a stride of 2 is taken into the channels first."""
    if stride == 2:
        images, kernel = _even_blocks(images), _kernel_blocks(kernel)
    return _minimal_filtering(images, kernel)


@partial(jax.jit, static_argnames="stride")
def _filter_gradients(
    images: Array, kernel: Array, cotangent: Array, stride: int
) -> tuple[Array, Array]:
    if stride == 1:
        return _minimal_filtering_gradients(images, kernel, cotangent)
    blocks, pull_back = jax.vjp(_even_blocks, images)
    kernel_blocks, pull_kernel_back = jax.vjp(_kernel_blocks, kernel)
    by_blocks, by_kernel = _minimal_filtering_gradients(blocks, kernel_blocks, cotangent)
    return *pull_back(by_blocks), *pull_kernel_back(by_kernel)


def _even_blocks(images: Array) -> Array:
    """Blocks of 2 × 2 pixels as channels; a kernel of even size reads no odd last one."""
    height, width = (side - side % 2 for side in images.shape[1:3])
    return space_to_depth(images[:, :height, :width])


def _kernel_blocks(kernel: Array) -> Array:
    return space_to_depth(kernel.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)


def _minimal_filtering(images: Array, kernel: Array, product: str = "pmi,pio->pmo") -> Array:
    """F(2 × 2, r × r): 1.8 to 2.6 times fewer products (Winograd 1980; Lavin and Gray 2016).

    Tiles of the image and the kernel are evaluated at points, multiplied there as matrices over
    the channels, and interpolated.
    """
    size = kernel.shape[0]
    _, of_kernel, to_outputs = _evaluations(size)
    n, *outputs = images.shape[0], *(side - size + 1 for side in images.shape[1:3])
    points, tiles = _image_points(images, size)
    taps = _combine_twice(of_kernel, kernel)
    products = jnp.einsum(product, points, taps.reshape(len(points), *kernel.shape[2:]))
    pixels = _combine_twice(to_outputs, products.reshape(*taps.shape[:2], n, *tiles, -1))
    whole = pixels.transpose(2, 3, 0, 4, 1, 5).reshape(n, *(_TILE_PX * t for t in tiles), -1)
    return whole[:, : outputs[0], : outputs[1]]


def _minimal_filtering_gradients(
    images: Array, kernel: Array, cotangent: Array
) -> tuple[Array, Array]:
    """By images: the cotangent convolved with the turned kernel. By kernel: products of points."""
    size, _, *channels = kernel.shape
    sides = (size - 1, size - 1)
    by_images = _minimal_filtering(
        jnp.pad(cotangent, ((0, 0), sides, sides, (0, 0))), kernel[::-1, ::-1], "pmo,pio->pmi"
    )
    _, of_kernel, to_outputs = _evaluations(size)
    points, tiles = _image_points(images, size)
    missing = [
        (0, _TILE_PX * count - side)
        for count, side in zip(tiles, cotangent.shape[1:3], strict=True)
    ]
    cotangent = jnp.pad(cotangent, ((0, 0), *missing, (0, 0)))
    rows = _combine(to_outputs.T, _pixels_of_tiles(cotangent, 1, tiles[0], _TILE_PX))
    outputs = _combine(to_outputs.T, _pixels_of_tiles(rows, 3, tiles[1], _TILE_PX))
    taps = jnp.einsum("pmi,pmo->pio", points, outputs.reshape(len(points), -1, channels[1]))
    by_kernel = _combine_twice(of_kernel.T, taps.reshape(len(rows), len(rows), *channels))
    return by_images, by_kernel


def _image_points(images: Array, size: int) -> tuple[Array, tuple[int, int]]:
    """(points², tiles, channels) of overlapping tiles, columns first, and the tiles a side."""
    of_tile, _, _ = _evaluations(size)
    tile = len(of_tile)
    height, width = (-(-(side - size + 1) // _TILE_PX) for side in images.shape[1:3])
    missing = [
        (0, max(0, _TILE_PX * (count - 1) + tile - side))
        for count, side in zip((height, width), images.shape[1:3], strict=True)
    ]
    images = jnp.pad(images, ((0, 0), *missing, (0, 0)))
    rows = _combine(of_tile, _pixels_of_tiles(images, 1, height, tile))
    points = _combine(of_tile, _pixels_of_tiles(rows, 3, width, tile))
    return points.reshape(tile**2, -1, images.shape[3]), (height, width)


def _pixels_of_tiles(array: Array, axis: int, tiles: int, length: int) -> list[Array]:
    """The first, second, ... pixel of every tile along an axis."""
    phases = [
        lax.slice_in_dim(array, phase, array.shape[axis], _TILE_PX, axis)
        for phase in range(_TILE_PX)
    ]
    return [
        lax.slice_in_dim(phases[pixel % _TILE_PX], start, start + tiles, axis=axis)
        for pixel in range(length)
        for start in (pixel // _TILE_PX,)
    ]


def _combine(matrix: np.ndarray, arrays: list[Array]) -> Array:
    """Sums of `arrays` with the coefficients of each row, stacked."""

    def combination(row: np.ndarray) -> Array:
        terms = [
            array if coefficient == 1 else array * coefficient
            for coefficient, array in zip(row, arrays, strict=True)
            if coefficient
        ]
        return functools.reduce(operator.add, terms)

    return jnp.stack([combination(row) for row in matrix])


def _combine_twice(matrix: np.ndarray, array: Array) -> Array:
    """Over the first axis and over the second; what became of the second comes first."""
    combined = _combine(matrix, list(array))
    return _combine(matrix, [combined[:, index] for index in range(array.shape[1])])


@functools.cache
def _evaluations(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of F(2, `size`): of a tile and of the kernel to points, and of points to outputs."""
    count = _TILE_PX + size - 1

    def powers(terms: int) -> np.ndarray:
        finite = np.vander(_POINTS[: count - 1], terms, increasing=True)
        return np.vstack([finite, np.eye(terms)[-1]])

    of_tile = np.linalg.inv(powers(count)).T
    of_tile[np.abs(of_tile) < 1e-12] = 0
    # Small whole numbers: most multiplications are by one.
    factors = np.array([np.abs(row[row != 0]).min() for row in of_tile])[:, None]
    matrices = of_tile / factors, powers(size) * factors, powers(_TILE_PX).T
    of_tile, of_kernel, to_outputs = (matrix.astype(np.float32) for matrix in matrices)
    return of_tile, of_kernel, to_outputs


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
