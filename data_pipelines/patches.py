"""Patches as the networks see them: what both ways from records to batches share."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import dataset_card
from data_pipelines.dataset_card import DOMAINS, DatasetCard, DomainCard
from data_pipelines.errors import UserError
from data_pipelines.records import read_records


def check_batch_size(directory: Path, card: DatasetCard, batch_size: int, devices: int) -> None:
    """Raise a `UserError` if a domain has no whole batch, or a batch no equal share a device."""
    for name in DOMAINS:
        count = card.domain(name).patches("train")
        if batch_size > count:
            raise UserError(
                f"batch size {batch_size} is larger than the {count} {name} training patches "
                f"of {directory}; use a smaller batch or prepare more patches"
            )
    if batch_size % devices:
        raise UserError(
            f"batch size {batch_size} does not divide over {devices} devices; "
            "use a multiple of the number of devices"
        )


def gain_and_bias(domain: DomainCard, case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and bias (n, 1, 1, 1) float32 of the cases (n,), for `normalise`."""
    constants = np.array([c.normalisation() for c in domain.cases], np.float32)
    gain, bias = constants[case].T.reshape(2, -1, 1, 1, 1)
    return gain, bias


@jax.jit
def normalise(stored: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """Stored integers (B, p, p, 1) -> float32 in [-1, 1]; gain and bias are (B, 1, 1, 1).

    It runs on the device, so that 16-bit integers cross the bus or lie in its memory.
    """
    return jnp.clip(stored.astype(jnp.float32) * gain + bias, -1.0, 1.0)


@jax.jit
def turn(patches: jax.Array, turns: jax.Array) -> jax.Array:
    """Symmetries of the square; bits 0, 1, 2 of turns (B, 1, 1, 1): transpose, two flips."""
    patches = jnp.where(turns & 1, patches.swapaxes(1, 2), patches)
    patches = jnp.where(turns & 2, patches[:, ::-1], patches)
    return jnp.where(turns & 4, patches[:, :, ::-1], patches)


def validation_patches(dataset_dir: str | Path, count: int | None = None) -> dict[str, np.ndarray]:
    """The same patches each time, cases mixed.

    Args:
        dataset_dir: made by `data_pipelines.prepare`.
        count: n, a domain; None for all. Fewer come back if a domain has fewer.

    Returns:
        {"clinical": (n, p, p, 1), "micro": (n, P, P, 1)}, float32 in [-1, 1].

    Raises:
        UserError: no valid dataset, or a damaged record.
    """
    directory = Path(dataset_dir)
    card = dataset_card.load(directory)
    available = min(card.domain(name).patches("validation") for name in DOMAINS)
    count = available if count is None else min(count, available)
    patches = {}
    for name in DOMAINS:
        domain = card.domain(name)
        stored, case = read_records(directory, domain, name, "validation", count)
        patches[name] = np.asarray(normalise(stored, *gain_and_bias(domain, case)))
    return patches
