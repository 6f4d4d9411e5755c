import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from records_by_hand import normalised_by_hand

from data_pipelines import dataset_card
from data_pipelines.batches import train_batches
from data_pipelines.errors import UserError
from data_pipelines.intensity import clinical_intensity
from data_pipelines.patches import gain_and_bias, normalise, turn, validation_patches


def test_normalisation_uses_each_records_own_case(dataset: Path) -> None:
    card = dataset_card.load(dataset)
    stored = np.array([-32768, -1000, -300, 400, 32767], np.int16).reshape(5, 1, 1, 1)
    found = normalise(stored, *gain_and_bias(card.clinical, np.zeros(5, np.int64)))
    np.testing.assert_allclose(np.asarray(found), clinical_intensity().normalise(stored), atol=1e-6)
    case = card.micro.cases[0]
    changed = (case, case.__class__(**vars(case) | {"air": 0.0, "tissue": 100.0}))
    domain = dataset_card.DomainCard(24, "uint16", changed, {})
    gain, bias = gain_and_bias(domain, np.array([1, 0, 1]))
    assert gain.shape == bias.shape == (3, 1, 1, 1)
    assert gain[0] == gain[2] == np.float32(1.04 / 70)
    assert gain[1] == np.float32(case.normalisation()[0])


def test_turns_are_the_eight_symmetries_of_the_square() -> None:
    patch = np.arange(9.0).reshape(1, 3, 3, 1)
    found = {
        np.asarray(turn(patch, np.full((1, 1, 1, 1), bits, np.uint8))).tobytes()
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


def test_validation_patches_are_fixed_and_apart_from_training(dataset: Path) -> None:
    first, again = validation_patches(dataset, 5), validation_patches(dataset, 5)
    everything = validation_patches(dataset)
    for name in dataset_card.DOMAINS:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], everything[name][:5])
        expected = normalised_by_hand(dataset, "validation", name)
        assert len(everything[name]) == len(expected) == 11
        for patch in everything[name]:
            assert np.abs(expected - patch).max(axis=(1, 2, 3)).min() < 2e-6
    training = itertools.islice(train_batches(dataset, batch_size=4), 8)
    seen = {np.asarray(patch).tobytes() for batch in training for patch in batch["micro"]}
    assert not seen & {patch.tobytes() for patch in everything["micro"]}


def test_more_validation_patches_than_there_are(dataset: Path) -> None:
    assert [len(patches) for patches in validation_patches(dataset, 99).values()] == [11, 11]


def test_a_directory_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset_card\.json"):
        validation_patches(tmp_path)
