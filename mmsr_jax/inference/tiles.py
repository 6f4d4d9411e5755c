"""Exact tiling: what a network gives for a whole slice, computed piece by piece."""

import math
from collections.abc import Callable

import numpy as np


def super_resolve_slice(
    network: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    scale: int,
    reach_px: float | None,
    tile_px: int,
) -> np.ndarray:
    """Apply a network to a slice in tiles; equals applying it to the whole slice.

    Every tile is computed with a halo of at least `reach_px` pixels and cropped hard, without
    blending. A tile at the image's border ends there, so that the network's own reflection happens
    only at the true border. All tiles have one shape, so the network is compiled once.

    Args:
      network: (1, h, w, 1) → (1, s·h, s·w, 1), in [-1, 1].
      image: (rows, columns) in [-1, 1].
      scale: s, of the network.
      reach_px: how far an output pixel sees, in input pixels; None if it sees everything, which
        makes the whole slice one tile.
      tile_px: side of a tile without its halo, in input pixels.

    Returns:
      (s·rows, s·columns) float32 in [-1, 1].
    """
    if reach_px is None:
        return np.asarray(network(image[None, :, :, None]))[0, :, :, 0]
    halo = math.ceil(reach_px)
    window = [min(size, tile_px + 2 * halo) for size in image.shape]
    output = np.empty([scale * size for size in image.shape], np.float32)
    for row in range(0, image.shape[0], tile_px):
        for column in range(0, image.shape[1], tile_px):
            corner = (row, column)
            start = [
                int(np.clip(at - halo, 0, size - extent))
                for at, size, extent in zip(corner, image.shape, window, strict=True)
            ]
            (top, left), (height, width) = start, window
            tile = image[top : top + height, left : left + width]
            fine = np.asarray(network(tile[None, :, :, None]))[0, :, :, 0]
            inner = tuple(
                slice(scale * (at - first), scale * (min(at + tile_px, size) - first))
                for at, first, size in zip(corner, start, image.shape, strict=True)
            )
            target = tuple(
                slice(scale * at, scale * min(at + tile_px, size))
                for at, size in zip(corner, image.shape, strict=True)
            )
            output[target] = fine[inner]
    return output
