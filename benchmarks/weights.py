"""Parameters of ours as arrays by name, as files have them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmsr_jax.methods import Params


def named_weights(params: Params) -> dict[str, np.ndarray]:
    """Every array by its path, such as "blocks.0.first.conv.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def params_of_weights(weights: Mapping[str, np.ndarray], like: Params) -> Params:
    """The parameters that `named_weights` turned into arrays by name; `like` has their paths."""
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(weights[_name(path)]), like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
