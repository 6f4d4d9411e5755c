"""A number that changes with any bit of a checkpoint, which the storage's own checksums miss."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


@jax.jit
def fingerprint(arrays: Any) -> UInt32[Array, ""]:
    """Of a tree of arrays of 32 bits, the same however they lie on devices.

    A sum modulo 2³² of all words, each times its own odd number: a changed bit changes it, and no
    order of summation does.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(arrays):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        total += jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1))
    return total


def text_fingerprint(values: Any) -> int:
    """Of what JSON can hold: the CRC-32 of its text."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
