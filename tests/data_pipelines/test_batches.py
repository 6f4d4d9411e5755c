import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_volumes import write_clinical, write_micro

from data_pipelines import batches, dataset_card
from data_pipelines.batches import DomainReader, train_batches, validation_patches
from data_pipelines.errors import UserError
from data_pipelines.intensity import clinical_intensity
from data_pipelines.prepare import PrepareOptions, prepare
from data_pipelines.volumes import read_volume

MICRO_ANCHORS = (10_000.0, 50_000.0)
BATCH = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """3 clinical cases (22 training patches in 5 batches), 4 micro cases (33 in 8)."""
    folder = tmp_path_factory.mktemp("batches")
    for number in range(3):
        write_clinical(folder / "clinical" / f"c{number}.nii.gz", number)
    for number in range(4):
        write_micro(folder / "micro" / f"m{number}.mha", number, shape=(5, 40, 40))
    prepare(
        PrepareOptions(
            clinical=(str(folder / "clinical"),),
            micro=(str(folder / "micro"),),
            output=folder / "dataset",
            scale=4,
            clinical_patch=6,
            patches_per_volume=11,
            clinical_mask="none",
            micro_mask="none",
            micro_air=MICRO_ANCHORS[0],
            micro_tissue=MICRO_ANCHORS[1],
            workers=1,
        )
    )
    return folder / "dataset"


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


def normalised_by_hand(dataset, split, name):
    """patch bytes of every record, from NumPy and the anchors alone."""
    card = dataset_card.load(dataset)
    builder = tfds.builder_from_directory(dataset / "ct_patches" / name / "1.0.0")
    patches = {}
    for record in builder.as_dataset(split=split).as_numpy_iterator():
        values = record["patch"].astype(np.float64)
        if name == "clinical":
            expected = 2 * (values + 1000) / 1400 - 1
        else:
            air, tissue = MICRO_ANCHORS
            expected = (values - air) / (tissue - air) * (2 * 1040 / 1400) - 1
        where = tuple(int(record[k]) for k in ("case", "slice", "row", "column"))
        patches[where] = np.clip(expected, -1, 1)[..., None]
    assert len(patches) == card.domain(name).patches(split)
    return patches


def test_shapes_range_and_values(dataset):
    steps = take(dataset, 5)
    for name, size in (("clinical", 6), ("micro", 24)):
        expected = np.array(list(normalised_by_hand(dataset, "train", name).values()))
        for batch in steps:
            assert batch[name].shape == (BATCH, size, size, 1)
            assert batch[name].dtype == np.float32
            for patch in batch[name]:
                assert np.abs(expected - patch).max(axis=(1, 2, 3)).min() < 2e-6
    values = np.concatenate([batch["micro"].ravel() for batch in steps])
    assert values.min() == -1
    assert values.max() == 1


def test_normalisation_uses_each_records_own_case(dataset):
    reader = DomainReader(dataset, dataset_card.load(dataset).clinical, "clinical")
    stored = np.array([-32768, -1000, -300, 400, 32767], np.int16).reshape(5, 1, 1, 1)
    found = batches.normalise(stored, *reader.normalisation(np.zeros(5, np.int64)))
    np.testing.assert_allclose(np.asarray(found), clinical_intensity().normalise(stored), atol=1e-6)
    case = dataset_card.load(dataset).micro.cases[0]
    changed = (case, case.__class__(**vars(case) | {"air": 0.0, "tissue": 100.0}))
    domain = dataset_card.DomainCard(24, "uint16", changed, {})
    gain, bias = DomainReader(dataset, domain, "micro").normalisation(np.array([1, 0, 1]))
    assert gain.shape == bias.shape == (3, 1, 1, 1)
    assert gain[0] == gain[2] == np.float32(1.04 / 70)
    assert gain[1] == np.float32(case.normalisation()[0])


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


def test_turns_are_the_eight_symmetries_of_the_square():
    patch = np.arange(9.0).reshape(1, 3, 3, 1)
    found = {
        np.asarray(batches.turn(patch, np.full((1, 1, 1, 1), bits, np.uint8))).tobytes()
        for bits in range(8)
    }
    square = jnp.asarray(patch[0, ..., 0])
    expected = {
        np.asarray(jnp.rot90(flipped, k))[None, ..., None].tobytes()
        for flipped in (square, square[:, ::-1])
        for k in range(4)
    }
    assert found == expected
    assert len(found) == 8


def test_augmentation_only_turns_and_changes_from_epoch_to_epoch(dataset):
    plain, turned = take(dataset, 10), take(dataset, 10, augment=True)
    changed = 0
    for one, two in zip(plain, turned, strict=True):
        for a, b in zip(one["micro"], two["micro"], strict=True):
            np.testing.assert_array_equal(np.sort(a.ravel()), np.sort(b.ravel()))
            changed += not np.array_equal(a, b)
    assert 20 < changed < 40  # of 40, seven in eight on average


def test_validation_patches_are_fixed_and_apart_from_training(dataset):
    first, again = validation_patches(dataset, 5), validation_patches(dataset, 5)
    assert_same([first], [again])
    everything = validation_patches(dataset)
    for name in dataset_card.DOMAINS:
        expected = np.array(list(normalised_by_hand(dataset, "validation", name).values()))
        assert len(first[name]) == 5
        assert len(everything[name]) == len(expected) == 11
        for patch in everything[name]:
            assert np.abs(expected - patch).max(axis=(1, 2, 3)).min() < 2e-6
    assert not {key(p) for p in everything["micro"]} & {
        key(p) for batch in take(dataset, 8) for p in batch["micro"]
    }


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
    for read in (
        lambda: train_batches(tmp_path, batch_size=1),
        lambda: validation_patches(tmp_path),
    ):
        with pytest.raises(UserError, match=r"no dataset_card\.json"):
            read()
