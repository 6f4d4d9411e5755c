"""Convolutions of stride 1 with 1.8 to 2.6 times fewer products: Winograd's minimal filtering.

F(2 × 2, r × r): overlapping tiles of the image and the kernel are evaluated at points, multiplied
there as matrices over the channels, and interpolated to 2 × 2 outputs a tile (Winograd 1980; Lavin
and Gray 2016). The gradients are the transposes of these steps.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Where polynomials are evaluated, beside infinity.
_POINTS = (0.0, 1.0, -1.0, 2.0)
_TILE_PX = 2  # of outputs; larger ones save more products and lose digits


def minimal_filtering(
    images: Float[Array, "n h w i"], kernel: Float[Array, "r r i o"]
) -> Float[Array, "n h2 w2 o"]:
    """VALID convolution of stride 1 with a square kernel of 2, 3 or 4 pixels a side."""
    evaluations, tiles = _evaluations(len(kernel)), _tiles(images, kernel)
    products = jnp.einsum(
        "pmi,pio->pmo", _image_points(images, evaluations, tiles), _kernel_points(kernel)
    )
    products = products.reshape(*evaluations.points, len(images), *tiles, -1)
    columns = _combine(evaluations.to_outputs, products)
    outputs = _interleave([_combine(evaluations.to_outputs, column) for column in columns])
    height, width = (side - len(kernel) + 1 for side in images.shape[1:3])
    return outputs[:, :height, :width]


def minimal_filtering_gradients(
    images: Float[Array, "n h w i"],
    kernel: Float[Array, "r r i o"],
    cotangent: Float[Array, "n h2 w2 o"],
) -> tuple[Float[Array, "n h w i"], Float[Array, "r r i o"]]:
    """By images and by kernel."""
    evaluations, tiles = _evaluations(len(kernel)), _tiles(images, kernel)
    cotangent = _padded(cotangent, [_TILE_PX * count for count in tiles])
    of_outputs = _points(evaluations.to_outputs.T, cotangent, tiles)

    products = jnp.einsum("pmo,pio->pmi", of_outputs, _kernel_points(kernel))
    products = products.reshape(*evaluations.points, len(images), *tiles, -1)
    columns = _overlap(_combine(evaluations.of_tile.T, products), 3)
    pixels = [_overlap(_combine(evaluations.of_tile.T, column), 1) for column in columns]
    by_images = _interleave(pixels)[:, : images.shape[1], : images.shape[2]]

    products = jnp.einsum("pmi,pmo->pio", _image_points(images, evaluations, tiles), of_outputs)
    columns = _combine(
        evaluations.of_kernel.T, products.reshape(*evaluations.points, *kernel.shape[2:])
    )
    taps = [jnp.stack(_combine(evaluations.of_kernel.T, column)) for column in columns]
    return by_images, jnp.stack(taps, axis=1)


class _Evaluations(NamedTuple):
    """Matrices along one axis: of a tile and of the kernel to points, and of points to outputs."""

    of_tile: np.ndarray
    of_kernel: np.ndarray
    to_outputs: np.ndarray

    @property
    def points(self) -> tuple[int, int]:
        """Columns and rows of points."""
        return len(self.of_tile), len(self.of_tile)


@functools.cache
def _evaluations(size: int) -> _Evaluations:
    count = _TILE_PX + size - 1

    def powers(terms: int) -> np.ndarray:
        finite = np.vander(_POINTS[: count - 1], terms, increasing=True)
        return np.vstack([finite, np.eye(terms)[-1]])

    of_tile = np.linalg.inv(powers(count)).T
    of_tile[np.abs(of_tile) < 1e-12] = 0
    # Small whole numbers: most multiplications are by one.
    factors = np.array([np.abs(row[row != 0]).min() for row in of_tile])[:, None]
    matrices = of_tile / factors, powers(size) * factors, powers(_TILE_PX).T
    return _Evaluations(*(matrix.astype(np.float32) for matrix in matrices))


def _tiles(images: Array, kernel: Array) -> tuple[int, int]:
    """How many tiles the outputs fill, down and across."""
    height, width = (-(-(side - len(kernel) + 1) // _TILE_PX) for side in images.shape[1:3])
    return height, width


def _image_points(images: Array, evaluations: _Evaluations, tiles: tuple[int, int]) -> Array:
    tile_px = len(evaluations.of_tile)
    images = _padded(images, [_TILE_PX * (count - 1) + tile_px for count in tiles])
    return _points(evaluations.of_tile, images, tiles)


def _points(matrix: np.ndarray, images: Array, tiles: tuple[int, int]) -> Array:
    """(points², tiles, channels) of the tiles' pixels combined along both axes; columns first."""
    pixels = matrix.shape[1]
    rows = jnp.stack(_combine(matrix, _pixels_of_tiles(images, 1, tiles[0], pixels)))
    points = jnp.stack(_combine(matrix, _pixels_of_tiles(rows, 3, tiles[1], pixels)))
    return points.reshape(len(matrix) ** 2, -1, images.shape[3])


def _kernel_points(kernel: Array) -> Array:
    """(points², channels in, channels out); columns first."""
    of_kernel = _evaluations(len(kernel)).of_kernel
    rows = jnp.stack(_combine(of_kernel, kernel))
    columns = [rows[:, column] for column in range(len(kernel))]
    return jnp.stack(_combine(of_kernel, columns)).reshape(-1, *kernel.shape[2:])


def _padded(images: Array, sides: Sequence[int]) -> Array:
    """With zeros below and on the right up to `sides`, if that is larger."""
    missing = [
        (0, max(0, wanted - side)) for wanted, side in zip(sides, images.shape[1:3], strict=True)
    ]
    return jnp.pad(images, ((0, 0), *missing, (0, 0)))


def _pixels_of_tiles(array: Array, axis: int, tiles: int, pixels: int) -> list[Array]:
    """The first, second, ... pixel of every tile along an axis."""
    phases = [
        lax.slice_in_dim(array, phase, array.shape[axis], _TILE_PX, axis)
        for phase in range(_TILE_PX)
    ]
    return [
        lax.slice_in_dim(phases[pixel % _TILE_PX], start, start + tiles, axis=axis)
        for pixel in range(pixels)
        for start in (pixel // _TILE_PX,)
    ]


def _overlap(pixels: Sequence[Array], axis: int) -> list[Array]:
    """The transpose of `_pixels_of_tiles`: sums of what falls on the even and on the odd pixels."""
    longest = (len(pixels) - 1) // _TILE_PX

    def placed(pixel: int) -> Array:
        before = pixel // _TILE_PX
        padding = [(0, 0)] * pixels[pixel].ndim
        padding[axis] = (before, longest - before)
        return jnp.pad(pixels[pixel], padding)

    return [
        functools.reduce(operator.add, map(placed, range(phase, len(pixels), _TILE_PX)))
        for phase in range(_TILE_PX)
    ]


def _combine(matrix: np.ndarray, arrays: Iterable[Array]) -> list[Array]:
    """Sums of `arrays` with the coefficients of each row."""
    arrays = list(arrays)

    def combination(row: np.ndarray) -> Array:
        terms = [
            array if coefficient == 1 else array * coefficient
            for coefficient, array in zip(row, arrays, strict=True)
            if coefficient
        ]
        return functools.reduce(operator.add, terms)

    return [combination(row) for row in matrix]


def _interleave(pixels: Sequence[Sequence[Array]]) -> Array:
    """Images of (even, odd) columns of (even, odd) rows."""
    whole = jnp.stack([jnp.stack(rows, axis=2) for rows in pixels], axis=4)
    n, height, _, width, _, channels = whole.shape
    return whole.reshape(n, _TILE_PX * height, _TILE_PX * width, channels)
