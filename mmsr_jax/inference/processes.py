"""Several processes of JAX on one volume: who does what, and when all are done."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.errors import UserError


def join_processes() -> None:
    """Become one of the processes of a cluster or pod that JAX detects.

    Elsewhere the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say which.

    Raises:
      UserError: JAX finds no cluster, or cannot reach it.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    count, index = (int(os.environ[name]) if name in os.environ else None for name in names)
    try:
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: JAX cannot join other processes ({' '.join(str(error).split())}); set "
            f"JAX_COORDINATOR_ADDRESS, {' and '.join(names)}"
        ) from error


def share(items: Sequence[int]) -> list[int]:
    """This process' part: neighbours, and as many as the others' but for one."""
    count, index = jax.process_count(), jax.process_index()
    first, end = (len(items) * at // count for at in (index, index + 1))
    return list(items[first:end])


@contextlib.contextmanager
def step_of_all() -> Iterator[None]:
    """A step that every process takes; at its end each waits for the others.

    Raises:
      UserError: it failed in another process, so that none is waited for in vain.
    """
    try:
        yield
    except Exception:
        _agreed(False)
        raise
    if not _agreed(True):
        raise UserError("another process has failed; see what it says")


def _agreed(well: bool) -> bool:
    """Wait for every process; whether all are well."""
    if jax.process_count() == 1:
        return well
    return bool(np.all(multihost_utils.process_allgather(np.array(well))))
