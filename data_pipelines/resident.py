"""The other last room: all training patches on the device, where batches are drawn and made.

As in `data_pipelines.batches`, the position in the data is a function of the step number alone:
a domain with N patches has N // B batches an epoch, and each epoch has its own order, drawn on the
device from (seed, domain, epoch). TensorFlow is not needed.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import dataset_card
from data_pipelines.dataset_card import DOMAINS, DatasetCard
from data_pipelines.errors import UserError
from data_pipelines.patches import check_batch_size, gain_and_bias, normalise, turn
from data_pipelines.records import read_records


class ResidentPatches(NamedTuple):
    """A domain's training patches as stored (N, p, p, 1), with their gain and bias (N, 1, 1, 1)."""

    stored: jax.Array
    gain: jax.Array
    bias: jax.Array


class Draws(NamedTuple):
    """Which patches batches are made of, (steps, B), and how they turn, (steps, B, 1, 1, 1)."""

    rows: jax.Array
    turns: jax.Array


def load_resident(
    dataset_dir: str | Path, *, batch_size: int, sharding: jax.sharding.Sharding
) -> dict[str, ResidentPatches]:
    """Read all training patches into the memory of every device of a replicated sharding.

    Raises:
        UserError: no valid dataset, a damaged record, patches beyond a device's memory, B larger
            than a domain or not divisible over the devices.
    """
    directory = Path(dataset_dir)
    card = dataset_card.load(directory)
    check_batch_size(directory, card, batch_size, len(sharding.device_set))
    for device in sharding.addressable_devices:
        _check_fits(directory, card, device)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, array.shape)

    resident = {}
    for name in DOMAINS:
        domain = card.domain(name)
        stored, case = read_records(directory, domain, name, "train")
        resident[name] = ResidentPatches(*map(put, (stored, *gain_and_bias(domain, case))))
    return resident


def draw(
    resident: dict[str, ResidentPatches],
    first_step: jax.Array,
    steps: int,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, Draws]:
    """What the batches of some consecutive steps are made of, to be called under jit.

    Orders are drawn once for each epoch that the steps may touch: an epoch's permutation costs
    more than a batch.

    Args:
        resident: by `load_resident`.
        first_step: number of the first step, a scalar.
        steps: how many.
        batch_size: B.
        seed: of the orders and turns.
    """
    draws = {}
    for name, patches in resident.items():
        words = np.random.SeedSequence([seed, DOMAINS.index(name)]).generate_state(2)
        order_key, turn_key = (jax.random.key(word) for word in words)
        rows = _rows(order_key, len(patches.stored), batch_size, first_step, steps)
        draws[name] = Draws(rows, _turns(turn_key, batch_size, first_step, steps))
    return draws


def _rows(
    key: jax.Array, count: int, batch_size: int, first_step: jax.Array, steps: int
) -> jax.Array:
    """Rows of a domain with `count` patches, (steps, B)."""
    batches = count // batch_size
    epochs = 1 + -(-(steps - 1) // batches)
    epoch, batch = jnp.divmod(first_step, batches)

    def order(epoch: jax.Array) -> jax.Array:
        rows = jax.random.permutation(jax.random.fold_in(key, epoch), count)
        return rows[: batches * batch_size].reshape(batches, batch_size)

    rows = jax.vmap(order)(epoch + jnp.arange(epochs)).reshape(-1, batch_size)
    return jax.lax.dynamic_slice_in_dim(rows, batch, steps)


def _turns(key: jax.Array, batch_size: int, first_step: jax.Array, steps: int) -> jax.Array:
    """Turns in [0, 8), (steps, B, 1, 1, 1)."""

    def of_step(step: jax.Array) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size, 1, 1, 1), 0, 8)

    return jax.vmap(of_step)(first_step + jnp.arange(steps))


def make_batch(
    resident: dict[str, ResidentPatches], draws: dict[str, Draws], *, augment: bool
) -> dict[str, jax.Array]:
    """One step's batch, as of `data_pipelines.batches.train_batches`, from its draws (B, ...)."""
    batch = {}
    for name, (rows, turns) in draws.items():
        patches = normalise(*(array[rows] for array in resident[name]))
        batch[name] = turn(patches, turns) if augment else patches
    return batch


def _check_fits(directory: Path, card: DatasetCard, device: jax.Device) -> None:
    """Where the device says how much memory it has."""
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return
    free = memory["bytes_limit"] - memory["bytes_in_use"]
    needed = sum(
        domain.patches("train") * domain.patch_bytes() for domain in (card.clinical, card.micro)
    )
    if needed > free:
        raise UserError(
            f"the training patches of {directory} take {needed / 1e9:.3g} GB, but {device} has "
            f"{free / 1e9:.3g} GB left; set config.data.residency=host"
        )
