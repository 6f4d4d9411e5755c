"""Modules as pure functions of explicit parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from mmsr_jax.methods.method import Params

Constructors = dict[str, dict[str, Callable[..., Any]]]


class Networks(NamedTuple):
    """Every network of a method, by branch ("generators", "discriminators") and name.

    Attributes:
      init: key → params.
      apply: (params, branch, name, input, part of the network or "__call__") → its output.
      modules: the networks without parameters.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Any]
    modules: dict[str, dict[str, Any]]


def networks(constructors: Constructors, remat: bool = False) -> Networks:
    """The networks that `constructors` make, each called with `rngs`.

    With `remat` a backward pass keeps no activations within a network, but computes them again.
    """
    modules = jax.tree.map(
        lambda make: nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), constructors
    )
    graphs = jax.tree.map(nnx.graphdef, modules, is_leaf=lambda node: isinstance(node, nnx.Module))

    def init(key: Array) -> Params:
        rngs = nnx.Rngs(key)
        return jax.tree.map(lambda make: nnx.to_pure_dict(nnx.state(make(rngs=rngs))), constructors)

    def apply(params: Params, branch: str, name: str, images: Any, part: str = "__call__") -> Any:
        def call(params: Any, images: Any) -> Any:
            return getattr(nnx.merge(graphs[branch][name], params), part)(images)

        return (jax.checkpoint(call) if remat else call)(params[branch][name], images)

    return Networks(init, apply, modules)
