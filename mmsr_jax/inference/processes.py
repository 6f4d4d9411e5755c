"""Several processes of JAX on one volume: who does what, and when all are done."""

from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils


def share(items: Sequence[int]) -> list[int]:
    """This process' part: neighbours, and as many as the others' but for one."""
    count, index = jax.process_count(), jax.process_index()
    first, end = (len(items) * at // count for at in (index, index + 1))
    return list(items[first:end])


def wait_for_all(moment: str) -> None:
    """Block until every process is here; `moment` must be the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)
