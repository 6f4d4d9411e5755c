"""Which tile and how many slices at once the memory of a device allows."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from data_pipelines.errors import UserError
from mmsr_jax.inference.network import Network
from mmsr_jax.inference.tiles import IN_FLIGHT, halo_px

_LARGEST_TILE_PX = {"cpu": 128}  # beyond, caches overflow
_LARGEST_TILE_ELSEWHERE_PX = 512
_SMALLEST_TILE_PX = 16
_SLICES_ON_AN_ACCELERATOR = 4  # at once, if they fit
_SHARE = 0.8  # of an accelerator's memory
_SHARE_OF_HOST = 0.5


class Plan(NamedTuple):
    """How slices are computed within a memory.

    Attributes:
      network: the model's, with its trunk on whole slices, or fused.
      tile_px: side of a tile without its halo.
      slices: at once, on each device.
      bytes: what that takes on a device, by the compiler's account.
    """

    network: Network
    tile_px: int
    slices: int
    bytes: int


def plan(network: Network, seen: tuple[int, int], budget_bytes: int | None = None) -> Plan:
    """The fastest way that fits: the whole trunk, large tiles and several slices where possible.

    Args:
      network: jitted.
      seen: (rows, columns) that the trunk sees.
      budget_bytes: memory of a device; by default most of what it has.

    Raises:
      UserError: nothing fits.
    """
    platform = jax.local_devices()[0].platform
    budget = budget_bytes or _memory_bytes()
    largest = _LARGEST_TILE_PX.get(platform, _LARGEST_TILE_ELSEWHERE_PX)
    batches = [1] if platform == "cpu" else _halvings(_SLICES_ON_AN_ACCELERATOR, 1)
    ways = [network] if network.reach_px is None else [network, network.fused()]
    needed = 0
    for way in ways:
        for slices in batches:
            images = jax.ShapeDtypeStruct((slices, *seen, 1), jnp.float32)
            features = jax.eval_shape(way.trunk, images)
            trunk = _bytes(way.trunk, images) if way is network else 0
            kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(features))
            for tile_px in _halvings(largest, _SMALLEST_TILE_PX):
                needed = max(trunk, kept + _tail_bytes(way, features, tile_px))
                if needed <= budget:
                    return Plan(way, tile_px, slices, needed)
                if trunk > budget or network.tail_reach_px is None:
                    break
    remedy = "give --roi, or a machine with more"
    raise UserError(
        f"slices of {seen[1]} x {seen[0]} pixels need {needed / 1e9:.2g} GB at once and "
        f"{budget / 1e9:.2g} GB of memory may be used; {remedy}"
    )


def _halvings(largest: int, smallest: int) -> list[int]:
    return [largest >> level for level in range((largest // smallest).bit_length())]


def _tail_bytes(network: Network, features: Any, tile_px: int) -> int:
    def tile(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        n, rows, columns, channels = array.shape
        if network.tail_reach_px is not None:
            side = tile_px + 2 * halo_px(network.tail_reach_px)
            rows, columns = min(rows, side), min(columns, side)
        return jax.ShapeDtypeStruct((n, rows, columns, channels), array.dtype)

    part = jax.tree.map(tile, features)
    output = jax.eval_shape(network.tail, part)
    return _bytes(network.tail, part) + IN_FLIGHT * output.size * output.dtype.itemsize


def _bytes(function: Any, argument: Any) -> int:
    """What running a jitted function takes, by the compiler's account; constants not counted."""
    used = function.lower(argument).compile().memory_analysis()
    return (
        used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes
        if used is not None
        else 0
    )


def _memory_bytes() -> int:
    """Of the first device, or of the machine's main memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * stats["bytes_limit"])
    return int(_SHARE_OF_HOST * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
