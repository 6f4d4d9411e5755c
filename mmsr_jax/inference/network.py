"""A super-resolving network as inference sees it: two functions, and how far each of them sees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Network:
    """Clinical to micro, split where it leaves the clinical grid.

    Attributes:
      trunk: (n, h, w, 1) in [-1, 1] → features, any tree of (n, h, w, c) arrays; jitted.
      tail: features → (n, s·h, s·w, 1) in [-1, 1]; jitted.
      scale: s.
      trunk_reach_px: how far features see, in clinical pixels; None: over the whole slice.
      tail_reach_px: how far a super-resolved pixel sees in the features, likewise.
    """

    trunk: Callable[[Any], Any]
    tail: Callable[[Any], Any]
    scale: int
    trunk_reach_px: float | None
    tail_reach_px: float | None

    @property
    def reach_px(self) -> float | None:
        """How far a super-resolved pixel sees in the scan; None: over the whole slice."""
        if self.trunk_reach_px is None or self.tail_reach_px is None:
            return None
        return self.trunk_reach_px + self.tail_reach_px

    def fused(self) -> "Network":
        """The same function all in the tail, so that tiles need no features of the whole slice.

        Every tile then computes its halo's features anew. Only for networks with a reach.
        """
        tail = jax.jit(lambda images: self.tail(self.trunk(images)))
        return Network(lambda images: images, tail, self.scale, 0.0, self.reach_px)
