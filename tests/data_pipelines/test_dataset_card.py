import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import dataset_card
from data_pipelines.dataset_card import CaseCard, DatasetCard, DomainCard, HeldOutScan
from data_pipelines.errors import UserError
from data_pipelines.intensity import AIR, TISSUE, Intensity

CASE = CaseCard(
    name="scan.nii.gz",
    shape_px=(5, 6, 7),
    spacing_mm=(0.5, 0.5, 2.0),
    split="both",
    validation_from_slice=4,
    air=100.0,
    tissue=30.0,
    tissue_level=TISSUE,
    anchor_method="modes",
    stored_offset=-4.0,
    stored_step=0.25,
    patches={"train": 9, "validation": 1},
    valid_positions=20,
    rejected={"nearly constant": 2},
)


@pytest.fixture
def dataset(tmp_path):
    sizes = {"a-train.tfrecord": 2500, "a-validation.tfrecord": 300}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    domain = DomainCard(4, "int16", (CASE, CASE), sizes)
    card = DatasetCard(
        scale=2,
        window_hu=(-1000.0, 400.0),
        seed=3,
        clinical=domain,
        micro=dataclasses.replace(domain, patch_px=8),
        held_out=(HeldOutScan("x.nii", "y.nii"),),
        software={"numpy": "2"},
    )
    card.save(tmp_path)
    return tmp_path, card


def test_a_card_comes_back_as_it_was_saved(dataset):
    directory, card = dataset
    assert dataset_card.load(directory) == card
    assert card.domain("micro").patches("train") == 18


def test_normalisation_from_stored_values_is_that_of_the_volume_values():
    stored = np.array([0, 40, 300, 500])
    gain, bias = CASE.normalisation()
    expected = Intensity(CASE.air, CASE.tissue, "modes").normalise(stored * 0.25 - 4.0)
    np.testing.assert_allclose(np.clip(stored * gain + bias, -1, 1), expected, atol=1e-6)
    assert AIR == -1.0


def test_no_card(tmp_path):
    with pytest.raises(UserError, match=r"has no dataset_card\.json; make one with"):
        dataset_card.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda d: (d / "a-train.tfrecord").write_bytes(b"123"),
            "has 3 bytes instead of 2500; prepare",
        ),
        (lambda d: (d / "a-train.tfrecord").unlink(), "a-train.tfrecord is missing; prepare"),
        (lambda d: (d / "dataset_card.json").write_text("{"), "is damaged"),
        (lambda d: (d / "dataset_card.json").write_text("{}"), "is damaged"),
    ],
)
def test_damage_is_named(dataset, damage, words):
    directory, _ = dataset
    damage(directory)
    with pytest.raises(UserError, match=words):
        dataset_card.load(directory)


def test_another_format_and_unknown_fields_are_refused(dataset):
    directory, _ = dataset
    path = directory / "dataset_card.json"
    data = json.loads(path.read_text())
    for change in ({"format_version": 99}, {"unheard_of": 1}):
        path.write_text(json.dumps(data | change))
        with pytest.raises(UserError, match="is damaged"):
            dataset_card.load(directory)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("scale",), "2", r"Expected `int`, got `str` - at `\$\.scale`"),
        (("window_hu",), [400, 400], "a window from 400.0 to 400.0 HU"),
        (
            ("micro", "patch_px"),
            10**6,
            r"18 train patches of 1000000 px cannot be in .* 2500 bytes",
        ),
        (("micro", "dtype"), "object", "Expected `str` matching regex"),
        (("clinical", "cases"), [], "Expected `array` of length >= 1"),
        (("clinical", "cases", 0, "patches"), {"train": 1}, "patches of train"),
        (("clinical", "cases", 0, "patches", "train"), 10**12, "cannot be in records of 2500"),
        (("clinical", "cases", 0, "patches", "train"), -1, "Expected `int` >= 0"),
        (("clinical", "cases", 1, "tissue"), 100, "anchors of 100.0 and 100.0"),
        (("clinical", "cases", 1, "stored_offset"), 1e300, "anchors of"),
        (("clinical", "shards"), {"../a-train.tfrecord": 1}, "'../a-train.tfrecord' is no file of"),
        (("held_out", 0, "micro"), "/etc/passwd", "'/etc/passwd' is no file of the dataset"),
        (("software", "\x1b[31m"), 1, "Expected `str`, got `int`"),
    ],
)
def test_what_a_card_cannot_mean_is_refused(dataset, where, value, words):
    path = dataset[0] / "dataset_card.json"
    data = json.loads(path.read_text())
    *parents, name = where
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"is damaged .*{words}.*; prepare") as caught:
        dataset_card.load(dataset[0])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ['{"scale": NaN}', "[]", "[" * 100_000, '{"a":' * 100_000])
def test_a_card_that_is_no_card(dataset, text):
    (dataset[0] / "dataset_card.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        dataset_card.load(dataset[0])
