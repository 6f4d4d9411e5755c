import math
from typing import Any

import numpy as np
import pytest

from mmsr_jax.validation import collapse, panel, validate

SCALE, COUNT = 4, 3
Arrays = dict[str, np.ndarray]


def upsampled(images: np.ndarray) -> np.ndarray:
    return np.kron(images, np.ones((1, SCALE, SCALE, 1), np.float32))


def pooled(images: np.ndarray) -> np.ndarray:
    n, height, width, channels = images.shape
    shape = (n, height // SCALE, SCALE, width // SCALE, SCALE, channels)
    return images.reshape(shape).mean(axis=(2, 4))


@pytest.fixture(scope="module")
def patches() -> Arrays:
    """Clinical patches that are the pooled micro patches, for once."""
    rng = np.random.default_rng(0)
    coarse = upsampled(rng.uniform(-0.6, 0.6, (COUNT, 12, 16, 1)))
    micro = (coarse + rng.uniform(-0.3, 0.3, coarse.shape)).astype(np.float32)
    return {"clinical": pooled(micro), "micro": micro}


def translation(patches: Arrays, sr: np.ndarray) -> Any:
    """A `translate` that knows its answers, one pair at a time."""

    def translate(batch: Arrays) -> Arrays:
        assert {name: len(images) for name, images in batch.items()} == {"clinical": 1, "micro": 1}
        (index,) = (
            i for i in range(COUNT) if np.array_equal(batch["clinical"][0], patches["clinical"][i])
        )
        np.testing.assert_array_equal(batch["micro"][0], patches["micro"][index])
        return {"sr": sr[index : index + 1], "fake_clinical": batch["clinical"]}

    return translate


def test_the_truth_scores_perfectly(patches: Arrays) -> None:
    values, translated = validate(translation(patches, patches["micro"]), patches, SCALE)
    assert values["correlation"] == pytest.approx(1)
    assert values["spectrum_distance"] == 0
    assert values["score"] == pytest.approx(0, abs=1e-6)
    assert values["consistency_psnr"] > 100
    ratio = patches["micro"].std(axis=(1, 2)).mean() / patches["clinical"].std(axis=(1, 2)).mean()
    assert values["contrast"] == pytest.approx(ratio, rel=1e-5)
    np.testing.assert_array_equal(translated["sr"], patches["micro"])
    np.testing.assert_array_equal(translated["fake_clinical"], patches["clinical"])
    assert collapse(values) is None


def test_an_inverted_image_has_the_right_spectrum_and_a_bad_score(patches: Arrays) -> None:
    values, _ = validate(translation(patches, -patches["micro"]), patches, SCALE)
    assert values["spectrum_distance"] == pytest.approx(0, abs=1e-9)
    assert values["correlation"] == pytest.approx(-1)
    assert values["score"] == pytest.approx(2)
    assert collapse(values) == "inverted: correlation -1.00 with the scan"


def test_a_blocky_image_agrees_with_the_scan_and_has_a_bad_score(patches: Arrays) -> None:
    values, _ = validate(translation(patches, upsampled(patches["clinical"])), patches, SCALE)
    assert values["correlation"] == pytest.approx(1)
    assert values["contrast"] == pytest.approx(1, rel=1e-5)
    assert values["score"] == pytest.approx(values["spectrum_distance"])
    assert values["score"] > 0.2
    assert collapse(values) is None


def test_a_blank_image_is_noticed(patches: Arrays) -> None:
    blank = np.full_like(patches["micro"], 0.25)
    values, _ = validate(translation(patches, blank), patches, SCALE)
    assert values["correlation"] == pytest.approx(0, abs=1e-6)
    assert collapse(values) == "blank: contrast 0.00 of the scan's"


def test_consistency_is_the_psnr_of_the_pooled_image(patches: Arrays) -> None:
    values, _ = validate(translation(patches, patches["micro"] + np.float32(0.2)), patches, SCALE)
    assert values["consistency_psnr"] == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize(
    ("contrast", "correlation", "problem"),
    [
        (1.0, 0.9, None),
        (0.31, 0.01, None),
        (0.29, 0.9, "blank"),
        (0.1, -0.9, "blank"),
        (1.0, -0.01, "inverted"),
    ],
)
def test_collapse(contrast: float, correlation: float, problem: str | None) -> None:
    found = collapse({"contrast": contrast, "correlation": correlation})
    assert (found or "None").startswith(str(problem))


@pytest.mark.parametrize(("rows", "shown"), [(4, COUNT), (2, 2), (1, 1)])
def test_panel(patches: Arrays, rows: int, shown: int) -> None:
    clinical, micro = patches["clinical"], patches["micro"]
    translated = {
        "sr": np.full_like(micro, 1.5),  # clipped to white
        "cycle_clinical": np.full_like(clinical, -1.0),
        "fake_clinical": np.zeros_like(clinical),
        "cycle_micro": np.full_like(micro, 0.5),
    }
    picture = panel(patches, translated, SCALE, rows)
    height, width = micro.shape[1:3]
    assert picture.shape == (shown * height, 7 * width)
    assert picture.dtype == np.uint8
    columns = np.split(picture[:height], 7, axis=1)
    for column, value in ((2, 255), (3, 0), (5, 127.5), (6, 191.25)):
        assert np.abs(columns[column] - value).max() <= 0.5 + 1e-9
    for column, image in ((0, upsampled(clinical)), (4, micro)):
        np.testing.assert_allclose(
            columns[column] / 127.5 - 1, image[0, :, :, 0], atol=0.5 / 127.5 + 1e-6
        )
    bicubic = columns[1] / 127.5 - 1
    pooled_bicubic = bicubic.reshape(12, SCALE, 16, SCALE).mean(axis=(1, 3))
    assert np.corrcoef(pooled_bicubic.ravel(), clinical[0].ravel())[0, 1] > 0.95
    assert math.isclose(bicubic.mean(), clinical[0].mean(), abs_tol=0.05)
