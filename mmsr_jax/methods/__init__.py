"""Methods: which networks, wired by which losses. `train_step` knows only the four functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Params = dict[str, Any]
Terms = dict[str, Array]
Images = dict[str, Array]


class Method(NamedTuple):
    """A training method as pure functions of explicit parameters.

    `params` has a "generators" and a "discriminators" branch. A batch is {"clinical": (n, h, w, 1),
    "micro": (n, s·h, s·w, 1)} in [-1, 1].
    """

    init: Callable[[Array], Params]
    """key → params."""
    generator_loss: Callable[[Params, Images, Array], tuple[Array, tuple[Images, Terms]]]
    """(params, batch, key) → (loss, (fakes by domain, named terms))."""
    discriminator_loss: Callable[[Params, Images, Images], tuple[Array, Terms]]
    """(params, fakes, batch) → (loss, named terms)."""
    super_resolve: Callable[[Params, Array], Array]
    """(params, clinical) → micro."""
    translate: Callable[[Params, Images], Images]
    """(params, batch) → every translation worth looking at, by name."""
    reach_px: float | None
    """How far a super-resolved pixel sees, in clinical pixels; None: the whole image."""
