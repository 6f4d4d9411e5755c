import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from records_by_hand import normalised_by_hand

from data_pipelines import batches, dataset_card
from data_pipelines.batches import DomainReader, train_batches
from data_pipelines.errors import UserError
from data_pipelines.intensity import clinical_intensity
from data_pipelines.volumes import read_volume

BATCH = 4


def take(dataset, count, **options):
    options = {"batch_size": BATCH, "seed": 5} | options
    return [jax.device_get(b) for b in itertools.islice(train_batches(dataset, **options), count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        for name in dataset_card.DOMAINS:
            np.testing.assert_array_equal(one[name], two[name])


def key(patch):
    return patch.tobytes()


def test_shapes_range_and_values(dataset):
    steps = take(dataset, 5)
    for name, size in (("clinical", 6), ("micro", 24)):
        expected = normalised_by_hand(dataset, "train", name)
        for batch in steps:
            assert batch[name].shape == (BATCH, size, size, 1)
            assert batch[name].dtype == np.float32
            for patch in batch[name]:
                assert np.abs(expected - patch).max(axis=(1, 2, 3)).min() < 2e-6
    values = np.concatenate([batch["micro"].ravel() for batch in steps])
    assert values.min() == -1
    assert values.max() == 1


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("start", [1, 4, 5, 8, 13])
def test_a_start_at_step_k_continues_exactly(dataset, start, augment):
    """Over the ends of epochs of 5 and of 8 steps."""
    whole = take(dataset, 18, augment=augment)
    assert_same(take(dataset, 18 - start, start_step=start, augment=augment), whole[start:])


def test_an_epoch_has_no_patch_twice_and_the_next_has_another_order(dataset):
    steps = take(dataset, 10)
    first, second = (
        [key(patch) for batch in part for patch in batch["clinical"]]
        for part in (steps[:5], steps[5:])
    )
    assert len(set(first)) == len(first) == 20
    assert len(set(second)) == 20
    assert first != second


def test_the_domains_are_shuffled_independently_and_by_the_seed(dataset):
    card = dataset_card.load(dataset)
    clinical = DomainReader(dataset, card.clinical, "clinical", seed=5)
    as_micro = DomainReader(dataset, card.clinical, "micro", seed=5)
    other = DomainReader(dataset, card.clinical, "clinical", seed=6)
    orders = [
        next(reader.batches(22, slice(0, 22)))[0].tobytes()
        for reader in (clinical, as_micro, other)
    ]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_same_global_batches(dataset, processes):
    reader = DomainReader(dataset, dataset_card.load(dataset).micro, "micro", seed=5)
    share = BATCH // processes
    whole = list(itertools.islice(reader.batches(BATCH, slice(0, BATCH), 3), 7))
    parts = [
        list(itertools.islice(reader.batches(BATCH, slice(i * share, (i + 1) * share), 3), 7))
        for i in range(processes)
    ]
    for step, (stored, case) in enumerate(whole):
        np.testing.assert_array_equal(stored, np.concatenate([p[step][0] for p in parts]))
        np.testing.assert_array_equal(case, np.concatenate([p[step][1] for p in parts]))


def test_a_domain_of_one_shard(dataset):
    domain = dataset_card.load(dataset).micro
    shard = next(name for name in domain.shards if "-train." in name)
    one = dataclasses.replace(domain, shards={shard: domain.shards[shard]})
    stored, _ = next(DomainReader(dataset, one, "micro").batches(2, slice(0, 2)))
    assert stored.shape == (2, 24, 24, 1)


class ProcessSharding:
    """The rows that a NamedSharding would give to the devices of one of several processes."""

    def __init__(self, process, processes, devices):
        self.device_set = range(processes * devices)
        self.mine = range(process * devices, (process + 1) * devices)

    def addressable_devices_indices_map(self, shape):
        rows = shape[0] // len(self.device_set)
        return {d: (slice(d * rows, (d + 1) * rows), slice(None)) for d in self.mine}


def test_rows_of_a_process_are_its_devices_rows():
    rows = [batches._rows_of_this_process(ProcessSharding(p, 3, 2), 12) for p in range(3)]
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_four_devices_get_what_one_gets(dataset):
    """In a process of its own, as the number of devices is fixed once for each."""
    script = """
import itertools, sys, jax, numpy as np
from data_pipelines.batches import train_batches
from data_pipelines.errors import UserError
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
options = dict(batch_size=4, seed=5, augment=True)
one = train_batches(sys.argv[1], **options)
four = train_batches(sys.argv[1], sharding=sharding, **options)
for a, b in itertools.islice(zip(one, four), 7):
    for name in a:
        assert b[name].sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_array_equal(a[name], b[name])
try:
    train_batches(sys.argv[1], batch_size=6, sharding=sharding)
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


def test_augmentation_only_turns_and_changes_from_epoch_to_epoch(dataset):
    plain, turned = take(dataset, 10), take(dataset, 10, augment=True)
    changed = 0
    for one, two in zip(plain, turned, strict=True):
        for a, b in zip(one["micro"], two["micro"], strict=True):
            np.testing.assert_array_equal(np.sort(a.ravel()), np.sort(b.ravel()))
            changed += not np.array_equal(a, b)
    assert 20 < changed < 40  # of 40, seven in eight on average


def test_values_come_from_the_scan_itself(dataset):
    """One step further back than the records: the file, the window, the batch."""
    volumes = [read_volume(dataset.parent / "clinical" / f"c{i}.nii.gz").array for i in range(3)]
    known = {float(v) for v in clinical_intensity().normalise(np.unique(np.stack(volumes)))}
    values = np.unique(take(dataset, 1)[0]["clinical"])
    distance = np.abs(values[:, None] - np.array(sorted(known))[None]).min(axis=1)
    assert distance.max() < 1e-6


def test_a_batch_larger_than_a_domain(dataset):
    with pytest.raises(UserError, match="batch size 23 is larger than the 22 clinical training"):
        train_batches(dataset, batch_size=23)


def test_a_damaged_record_is_named(dataset, tmp_path):
    shutil.copytree(dataset, copy := tmp_path / "copy")
    for shard in copy.rglob("*clinical*/**/*train.tfrecord*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    with pytest.raises(UserError, match=r"copy has a damaged clinical record \(.*prepare"):
        take(copy, 5)


def test_a_directory_without_a_dataset(tmp_path):
    with pytest.raises(UserError, match=r"no dataset_card\.json"):
        train_batches(tmp_path, batch_size=1)
