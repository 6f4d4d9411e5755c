"""Networks of the methods with random weights, in which an error cannot hide."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from commands import small_config

from mmsr_jax import methods


def random_super_resolution(
    method: str, norm: str, upsample: str, base: str, scale: int, dtype: str
) -> tuple[Any, ...]:
    """(trunk, tail, their reaches) of a method."""
    config = small_config(
        method=method,
        compute_dtype=dtype,
        data__scale=scale,
        data__clinical_patch_px=32,
        networks__norm=norm,
        networks__upsample=upsample,
        networks__unit_upsample=upsample,
        networks__unit_channels=8,
        networks__unit_blocks=1,
        networks__original_channels=4,
        networks__original_blocks=1,
        networks__base=base,
    )
    made = methods.create(config)
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.05
        return jnp.asarray(rng.normal(0, spread, leaf.shape).astype(leaf.dtype))

    params = jax.tree.map(values, jax.eval_shape(made.init, jax.random.key(0)))
    trunk, tail, *reach = made.super_resolution
    return partial(trunk, params), partial(tail, params), *reach
