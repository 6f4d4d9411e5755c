"""What a method is. `train_step` and inference know nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Params = dict[str, Any]
Terms = dict[str, Array]
Images = dict[str, Any]  # arrays of JAX or NumPy


class Method(NamedTuple):
    """A training method as pure functions of explicit parameters.

    `params` has a "generators" and a "discriminators" branch. A batch is {"clinical": (n, h, w, 1),
    "micro": (n, s·h, s·w, 1)}, float32 in [-1, 1].

    Attributes:
      init: key → params.
      generator_loss: (params, batch, key) → (loss, (fakes by domain, named terms)).
      discriminator_loss: (params, fakes, batch) → (loss, named terms).
      super_resolve: (params, clinical) → micro.
      translate: (params, batch) → every translation worth looking at, by name.
      reach_px: how far a super-resolved pixel sees, in clinical pixels; None: the whole image.
    """

    init: Callable[[Array], Params]
    generator_loss: Callable[[Params, Images, Array], tuple[Array, tuple[Images, Terms]]]
    discriminator_loss: Callable[[Params, Images, Images], tuple[Array, Terms]]
    super_resolve: Callable[[Params, Array], Array]
    translate: Callable[[Params, Images], Images]
    reach_px: float | None
