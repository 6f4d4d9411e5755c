"""What a method is. `train_step` and inference know nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Params = dict[str, Any]
Terms = dict[str, Array]
Images = dict[str, Any]  # arrays of JAX or NumPy


class SuperResolution(NamedTuple):
    """The way from clinical to micro, split where it leaves the clinical grid.

    Attributes:
      trunk: (params, clinical) → features on the clinical grid, any tree of (n, h, w, c) arrays.
      tail: (params, features) → micro.
      trunk_reach_px: how far features see, in clinical pixels; None: over the whole image.
      tail_reach_px: how far a super-resolved pixel sees in the features, likewise.
    """

    trunk: Callable[[Params, Array], Any]
    tail: Callable[[Params, Any], Array]
    trunk_reach_px: float | None
    tail_reach_px: float | None


def unsplit(super_resolve: Callable[[Params, Array], Array]) -> SuperResolution:
    """That of networks with spatial statistics at micro size, which need the whole image."""
    return SuperResolution(lambda params, clinical: clinical, super_resolve, 0.0, None)


class Method(NamedTuple):
    """A training method as pure functions of explicit parameters.

    `params` has a "generators" and a "discriminators" branch. A batch is {"clinical": (n, h, w, 1),
    "micro": (n, s·h, s·w, 1)}, float32 in [-1, 1].

    Attributes:
      init: key → params.
      generator_loss: (params, batch, key) → (loss, (fakes by domain, named terms)).
      discriminator_loss: (params, fakes, batch) → (loss, named terms).
      super_resolution: (params, clinical) → micro, in its two parts.
      translate: (params, batch) → every translation worth looking at, by name.
    """

    init: Callable[[Array], Params]
    generator_loss: Callable[[Params, Images, Array], tuple[Array, tuple[Images, Terms]]]
    discriminator_loss: Callable[[Params, Images, Images], tuple[Array, Terms]]
    super_resolution: SuperResolution
    translate: Callable[[Params, Images], Images]

    def super_resolve(self, params: Params, clinical: Array) -> Array:
        """Micro images of clinical ones."""
        return self.super_resolution.tail(params, self.super_resolution.trunk(params, clinical))
