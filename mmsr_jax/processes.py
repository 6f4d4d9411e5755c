"""Several processes of JAX on one run or volume: who does what, and when all are done."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The others stop this long after a process died or left them, and say so.
_PATIENCE_S = 30


def join_processes() -> bool:
    """Become one of several processes of a cluster, pod or launcher; False if this one is alone.

    JAX detects Cloud TPU, Slurm and Open MPI. Elsewhere the variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say which process this is.

    Raises:
      UserError: the others cannot be reached, or one of the variables is missing or no number.
    """
    address, *numbers = (os.environ.get(name) for name in _VARIABLES)
    # For a Slurm task that is alone JAX would hide all GPUs but one.
    if address is None and os.environ.get("SLURM_NTASKS") == "1":
        return False
    try:
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            heartbeat_timeout_seconds=_PATIENCE_S,
            shutdown_timeout_seconds=_PATIENCE_S,
        )
    except (ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and not any((address, *numbers)):
            return False  # no cluster either
        given = " ".join(f"{name}={os.environ.get(name, '')}" for name in _VARIABLES)
        raise UserError(
            f"{given}: JAX cannot join the other processes ({' '.join(str(error).split())[:200]}); "
            "give the address and port of the first, how many they are, and which this is"
        ) from error
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes what only one can write."""
    return jax.process_index() == 0


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
