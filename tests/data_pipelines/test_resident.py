import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batches import train_batches
from data_pipelines.errors import UserError
from data_pipelines.resident import Draws, ResidentPatches, draw, load_resident, make_batch

BATCH = 4  # 5 batches of the 22 clinical patches, 8 of the 33 micro ones


@pytest.fixture(scope="module")
def resident(dataset: Path) -> dict[str, ResidentPatches]:
    return load_resident(dataset, batch_size=BATCH, sharding=one_device())


def one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@partial(jax.jit, static_argnames=("steps", "batch_size", "seed", "augment"))
def stacked(
    resident: dict[str, ResidentPatches],
    first_step: int,
    *,
    steps: int,
    batch_size: int = BATCH,
    seed: int = 5,
    augment: bool = False,
) -> dict[str, jax.Array]:
    draws = draw(resident, first_step, steps, batch_size=batch_size, seed=seed)
    return jax.lax.map(partial(make_batch, resident, augment=augment), draws)


@partial(jax.jit, static_argnames=("counts", "steps", "batch_size", "seed"))
def drawn(
    counts: tuple[int, int], first_step: int, steps: int, batch_size: int = BATCH, seed: int = 5
) -> dict[str, Draws]:
    """From domains of so many patches."""
    resident = {
        name: ResidentPatches(*[jnp.zeros((count, 1, 1, 1))] * 3)
        for name, count in zip(("clinical", "micro"), counts, strict=True)
    }
    return draw(resident, first_step, steps, batch_size=batch_size, seed=seed)


# ---- the order --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "batch_size", "seed"), [((22, 33), 4, 0), ((7, 8), 7, 2**40), ((1, 3), 1, 1)]
)
def test_an_epoch_visits_no_patch_twice_and_all_but_the_remainder(
    counts: tuple[int, int], batch_size: int, seed: int
) -> None:
    whole = drawn(counts, 0, 3 * max(counts) // batch_size, batch_size, seed)
    for name, count in zip(("clinical", "micro"), counts, strict=True):
        batches = count // batch_size
        for epoch in range(3):
            visited = whole[name].rows[epoch * batches : (epoch + 1) * batches].ravel().tolist()
            assert len(set(visited)) == len(visited) == batches * batch_size
            assert set(visited) <= set(range(count))


@settings(max_examples=20, deadline=None)
@given(first_step=st.integers(0, 10_000_000))
def test_each_step_is_the_same_wherever_a_dispatch_begins(first_step: int) -> None:
    """A dispatch of 14 steps touches four epochs of the clinical domain, three of the other."""
    whole = drawn((22, 33), first_step, 14)
    alone = [drawn((22, 33), first_step + i, 1) for i in range(14)]
    for name, (rows, turns) in whole.items():
        assert rows.shape == (14, BATCH)
        np.testing.assert_array_equal(rows, [one[name].rows[0] for one in alone])
        np.testing.assert_array_equal(turns, [one[name].turns[0] for one in alone])


def test_orders_of_epochs_domains_and_seeds_are_others() -> None:
    counts = (40, 40)
    first, second = drawn(counts, 0, 10), drawn(counts, 10, 10)
    other = drawn(counts, 0, 10, seed=6)
    orders = [one[name].rows.tobytes() for one in (first, second, other) for name in one]
    assert len(set(orders)) == len(orders) == 6


def test_orders_are_drawn_evenly() -> None:
    """Every patch stands equally often at the first place: 3000 epochs of 6 patches."""
    first = np.asarray(drawn((6, 6), 0, 3000, batch_size=6)["micro"].rows[:, 0])
    assert np.abs(np.bincount(first, minlength=6) - 500).max() < 5 * np.sqrt(500 * 5 / 6)


# ---- the values -------------------------------------------------------------------------------


def test_an_epoch_has_the_patches_that_the_host_reads(dataset: Path) -> None:
    """With batches of 11, which leave no remainder in either domain."""
    resident = load_resident(dataset, batch_size=11, sharding=one_device())
    host = train_batches(dataset, batch_size=11)
    batches = [next(host) for _ in range(3)]
    for name, count in (("clinical", 2), ("micro", 3)):
        found = np.asarray(stacked(resident, 0, steps=count, batch_size=11)[name])
        expected = np.concatenate([batch[name] for batch in batches[:count]])
        assert found.dtype == np.float32
        assert len({patch.tobytes() for patch in expected}) == 11 * count
        np.testing.assert_allclose(
            in_order(found.reshape(expected.shape)), in_order(expected), atol=1e-6
        )


def in_order(patches: np.ndarray) -> np.ndarray:
    flat = patches.reshape(len(patches), -1)
    return flat[np.lexsort(np.round(flat[:, :9], 4).T)]


def test_batches_are_float32_in_range(resident: dict[str, ResidentPatches]) -> None:
    batches = stacked(resident, 3, steps=2)
    for name, size in (("clinical", 6), ("micro", 24)):
        assert batches[name].shape == (2, BATCH, size, size, 1)
        assert batches[name].dtype == np.float32
    assert batches["micro"].min() == -1
    assert batches["micro"].max() == 1


def test_augmentation_only_turns_in_all_ways(resident: dict[str, ResidentPatches]) -> None:
    plain = stacked(resident, 0, steps=16)["micro"].reshape(-1, 24, 24)
    turned = stacked(resident, 0, steps=16, augment=True)["micro"].reshape(-1, 24, 24)
    ways = []
    for one, other in zip(np.asarray(plain), np.asarray(turned), strict=True):
        turns = [np.rot90(flipped, k) for flipped in (one, one.T) for k in range(4)]
        (way,) = [k for k, turn in enumerate(turns) if np.array_equal(turn, other)]
        ways.append(way)
    assert set(ways) == set(range(8))
    first, second = np.reshape(ways, (2, 8 * BATCH))  # epochs of 8 batches
    assert list(first) != list(second)


def test_four_devices_get_what_one_gets(dataset: Path) -> None:
    """In a process of its own, as the number of devices is fixed once for each."""
    script = """
import sys, jax, numpy as np
from data_pipelines.errors import UserError
from data_pipelines.resident import draw, load_resident, make_batch
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
replicated, split = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",))
)
one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

def third(resident):
    draws = draw(resident, 2, 3, batch_size=4, seed=5)
    return make_batch(resident, jax.tree.map(lambda leaf: leaf[2], draws), augment=True)

one = jax.jit(third)(load_resident(sys.argv[1], batch_size=4, sharding=one_device))
resident = load_resident(sys.argv[1], batch_size=4, sharding=replicated)
for leaf in jax.tree.leaves(resident):
    assert len(leaf.addressable_shards) == 4
    assert leaf.is_fully_replicated
compiled = jax.jit(third, out_shardings=split).lower(resident).compile()
assert not any(what in compiled.as_text() for what in ("all-gather", "all-to-all"))
four = compiled(resident)
for name in one:
    assert four[name].sharding.is_equivalent_to(split, 4)
    np.testing.assert_array_equal(one[name], four[name])
try:
    load_resident(sys.argv[1], batch_size=6, sharding=replicated)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(dataset)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "batch size 6 does not divide over 4 devices" in done.stdout


# ---- what cannot be loaded --------------------------------------------------------------------


class SmallDevice:
    """A device that says how much memory it has."""

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": 50_000, "bytes_in_use": 20_000}

    def __str__(self) -> str:
        return "GPU_0"


class OnSmallDevice:
    addressable_devices = device_set = {SmallDevice()}  # noqa: RUF012


def test_patches_beyond_the_devices_memory(dataset: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_resident(dataset, batch_size=BATCH, sharding=OnSmallDevice())
    assert str(caught.value) == (
        f"the training patches of {dataset} take 3.96e-05 GB, but GPU_0 has 3e-05 GB left; set "
        "config.data.residency=host"
    )


def test_a_batch_larger_than_a_domain(dataset: Path) -> None:
    with pytest.raises(UserError, match="batch size 23 is larger than the 22 clinical training"):
        load_resident(dataset, batch_size=23, sharding=one_device())


def test_a_damaged_record_is_named(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, copy := tmp_path / "copy")
    shard = next(copy.rglob("*micro*/**/*train.tfrecord*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"copy has a damaged micro record \(.*prepare"):
        load_resident(copy, batch_size=BATCH, sharding=one_device())


def test_a_directory_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset_card\.json"):
        load_resident(tmp_path, batch_size=1, sharding=one_device())
