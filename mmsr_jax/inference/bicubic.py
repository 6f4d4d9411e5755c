"""Bicubic interpolation of parts of slices, and the smooth correction that it makes possible."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmsr_jax.inference.tiles import Window


def bicubic(plane: np.ndarray, window: Window, scale: int) -> np.ndarray:
    """Cubic convolution (Keys 1981) about pixel centres.

    Args:
      plane: (rows, columns).
      window: the part to interpolate; pixels around it are used.
      scale: how many times finer.

    Returns:
      (s·window's rows, s·window's columns) float32.
    """
    rows = _weights(plane.shape[0], scale)[scale * window.top : scale * window.bottom]
    columns = _weights(plane.shape[1], scale)[scale * window.left : scale * window.right]
    return rows @ plane.astype(np.float32) @ columns.T


def pooled(fine: np.ndarray, scale: int) -> np.ndarray:
    """Means over blocks of `scale` × `scale` pixels of a plane: f of the paper; float32."""
    rows, columns = (side // scale for side in fine.shape)
    return fine.reshape(rows, scale, columns, scale).mean(axis=(1, 3), dtype=np.float32)


def made_consistent(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Change a plane smoothly until its pooling is a given one, but for rounding.

    Adds the one bicubic surface whose block means are coarse − pool(fine): the limit of
    `mmsr_jax.networks.consistency.consistent`, solved for at low resolution. Adding the difference
    itself to every block would leave the blocks visible.

    Args:
      fine: (s·rows, s·columns).
      coarse: (rows, columns), in the same unit.

    Returns:
      float32, of the shape of `fine`.
    """
    rows, columns = coarse.shape
    scale = len(fine) // rows
    missing = coarse.astype(np.float32) - pooled(fine, scale)
    return fine + _surface(rows, scale) @ missing @ _surface(columns, scale).T


@functools.lru_cache(maxsize=8)
def _weights(size: int, scale: int) -> np.ndarray:
    """(s·size, size): what each coarse pixel adds to each fine one."""
    identity = jnp.eye(size, dtype=jnp.float32)
    return np.asarray(jax.image.resize(identity, (scale * size, size), "cubic"))


@functools.lru_cache(maxsize=8)
def _surface(size: int, scale: int) -> np.ndarray:
    """(s·size, size): the bicubic curve whose block means are 1 in one block and 0 elsewhere."""
    weights = _weights(size, scale).astype(np.float64)
    means = weights.reshape(size, scale, size).mean(axis=1)
    return np.linalg.solve(means.T, weights.T).T.astype(np.float32)
