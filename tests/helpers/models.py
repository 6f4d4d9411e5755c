"""Models without training, whose output is known exactly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.network import Network

SCALE = 8
WINDOW_HU = (-1000.0, 500.0)


def model_of(
    change: Callable[[Any], Any], name: str = "stub", *, scale: int = SCALE, reach_px: float = 0.0
) -> SuperResolver:
    """Repeats every pixel, then changes the micro images; `reach_px` as far as the change sees."""

    def tail(images: Any) -> Any:
        return change(jnp.repeat(jnp.repeat(images, scale, 1), scale, 2))

    network = Network(jax.jit(lambda images: images), jax.jit(tail), scale, 0.0, reach_px)
    return SuperResolver(network, WINDOW_HU, {"parameters_sha256": name})


REPEATING = model_of(lambda micro: micro)
