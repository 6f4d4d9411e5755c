"""Exact tiling: what a network gives for whole slices, computed piece by piece."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from data_pipelines.errors import UserError
from mmsr_jax.inference.network import Network

IN_FLIGHT = 2  # tiles that are computed while the one before is copied


class Window(NamedTuple):
    """A rectangle of a slice, in clinical pixels; the ends are exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, margin_px: int, within: tuple[int, int]) -> "Window":
        """With a margin on every side, as far as the slice of the size `within` goes."""
        return Window(
            max(self.top - margin_px, 0),
            min(self.bottom + margin_px, within[0]),
            max(self.left - margin_px, 0),
            min(self.right + margin_px, within[1]),
        )

    def relative_to(self, other: "Window") -> "Window":
        """The same rectangle, counted from the corner of `other`."""
        return Window(
            self.top - other.top,
            self.bottom - other.top,
            self.left - other.left,
            self.right - other.left,
        )

    def of(self, images: np.ndarray, scale: int = 1) -> np.ndarray:
        """This part, a view, of (..., rows, columns) arrays on the grid `scale` times finer."""
        rows = slice(scale * self.top, scale * self.bottom)
        return images[..., rows, scale * self.left : scale * self.right]


def bounding_window(mask: np.ndarray) -> Window:
    """The smallest window that holds a (rows, columns) mask, which must not be empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def super_resolve_slices(
    network: Network,
    images: np.ndarray,
    *,
    tile_px: int,
    window: Window | None = None,
    wanted: np.ndarray | None = None,
    place: Callable[[Any], Any] = jax.numpy.asarray,
) -> np.ndarray:
    """Apply a network to slices in tiles; equals applying it to the whole slices.

    The trunk runs once, on all that the window depends on, and the tail on tiles with a halo of
    what it reaches, cropped hard, without blending. A tile at the slice's border ends there, so
    that the network's own reflection happens only at the true border. All tiles have one shape, so
    that the network is compiled once.

    Args:
      network: of any reach; a part that sees the whole slice gets the whole slice.
      images: (n, rows, columns) in [-1, 1].
      tile_px: side of a tile without its halo, in clinical pixels.
      window: the part of the slices to super-resolve; the whole by default.
      wanted: bool, of the window's shape; tiles without any wanted pixel are not computed.
      place: puts (n, rows, columns, 1) on the devices.

    Returns:
      (n, s·rows, s·columns) float32 in [-1, 1], of the window; NaN in tiles that are not wanted.

    Raises:
      UserError: the network gives NaN or infinite values.
    """
    rows, columns = images.shape[1:]
    window = window or Window(0, rows, 0, columns)
    seen = seen_window(network, window, (rows, columns))
    features = network.trunk(place(seen.of(images)[..., None].astype(np.float32)))
    fine = np.full((len(images), *(network.scale * side for side in window.shape)), np.nan, "f4")

    def keep(tile: "_Tile", result: Any) -> None:
        inner = tile.target.relative_to(tile.source)
        target = tile.target.relative_to(window)
        result = np.asarray(result)[..., 0]
        if not np.isfinite(result).all():
            raise UserError("the model gives NaN or infinite values; train it again")
        target.of(fine, network.scale)[...] = inner.of(result, network.scale)

    pending: deque[tuple[_Tile, Any]] = deque()
    for tile in _tiles(window, seen, tile_px, network.tail_reach_px):
        if wanted is not None and not tile.target.relative_to(window).of(wanted).any():
            continue
        top, _, left, _ = tile.source.relative_to(seen)
        part = features if tile.source == seen else _cut(features, top, left, tile.source.shape)
        pending.append((tile, network.tail(part)))
        if len(pending) > IN_FLIGHT:
            keep(*pending.popleft())
    while pending:
        keep(*pending.popleft())
    return fine


def seen_window(network: Network, window: Window, size: tuple[int, int]) -> Window:
    """The part of a (rows, columns) slice that a window of the output depends on."""
    if network.trunk_reach_px is None or network.tail_reach_px is None:
        return Window(0, size[0], 0, size[1])
    return window.grown(halo_px(network.trunk_reach_px) + halo_px(network.tail_reach_px), size)


def halo_px(reach_px: float) -> int:
    """Whole pixels around a tile for a network that sees `reach_px` beyond its place."""
    return math.ceil(reach_px)


class _Tile(NamedTuple):
    source: Window  # with its halo
    target: Window


def _tiles(window: Window, seen: Window, tile_px: int, reach_px: float | None) -> Iterator[_Tile]:
    """Tiles that cover the window, of one shape; one tile if they see everything."""
    if reach_px is None:
        yield _Tile(seen, window)
        return
    halo = halo_px(reach_px)
    height, width = (min(side, tile_px + 2 * halo) for side in seen.shape)
    for row in range(window.top, window.bottom, tile_px):
        for column in range(window.left, window.right, tile_px):
            top = int(np.clip(row - halo, seen.top, seen.bottom - height))
            left = int(np.clip(column - halo, seen.left, seen.right - width))
            target = Window(
                row,
                min(row + tile_px, window.bottom),
                column,
                min(column + tile_px, window.right),
            )
            yield _Tile(Window(top, top + height, left, left + width), target)


@partial(jax.jit, static_argnames="shape")
def _cut(features: Any, top: int, left: int, shape: tuple[int, int]) -> Any:
    """The same part of every array; compiled once for all places."""

    def cut(array: jax.Array) -> jax.Array:
        sizes = (array.shape[0], *shape, array.shape[3])
        return lax.dynamic_slice(array, (0, top, left, 0), sizes)

    return jax.tree.map(cut, features)
