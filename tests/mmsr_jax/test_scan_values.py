"""What becomes of scans: held to them by projection, averaged over members."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from models import REPEATING, SCALE, WINDOW_HU, model_of
from scan_files import OBLIQUE
from scans import negative, noise, pooled, repeated, smooth, super_resolve

from data_pipelines.errors import UserError
from data_pipelines.geometry import Volume
from data_pipelines.volumes import read_volume, write_volume

# ---- consistency ------------------------------------------------------------------------------


def wrong(micro: Any) -> Any:
    """Darker, less contrast, and a wave."""
    rows = jnp.arange(micro.shape[1])[None, :, None, None]
    return 0.7 * micro - 0.1 + 0.05 * jnp.sin(rows / 3.0)


@pytest.mark.parametrize("hu", [noise(), smooth()], ids=["beyond the window", "smooth"])
def test_projection_gives_the_scan_back(hu: np.ndarray, tmp_path: Path) -> None:
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    models = [model_of(wrong)]
    plain, before = super_resolve(tmp_path / "scan.nii", tmp_path / "plain.nii", models=models)
    fine, after = super_resolve(
        tmp_path / "scan.nii", tmp_path / "fine.nii", models=models, consistency="project"
    )
    # 64 pixels of a block, each rounded by up to a half
    assert np.abs(pooled(fine) - hu).max() < 0.5
    assert np.sqrt(((pooled(fine) - hu) ** 2).mean()) < 0.06
    compared = (hu >= WINDOW_HU[0]) & (hu <= WINDOW_HU[1])
    difference = np.abs(pooled(plain) - hu)[compared]
    for report, stored in ((before, plain), (after, fine)):
        figures = report["consistency"]
        assert figures["pixels"] == compared.sum()
        assert figures["network"]["mae_hu"] == pytest.approx(difference.mean(), abs=0.05)
        assert figures["network"]["max_hu"] == pytest.approx(difference.max(), abs=0.6)
        residual = np.abs(pooled(stored) - hu)[compared]
        assert figures["output"]["mae_hu"] == pytest.approx(residual.mean(), abs=1e-3)
        rms = np.sqrt((residual**2).mean())
        assert figures["output"]["rmse_hu"] == pytest.approx(rms, abs=1e-3)
        decibels = 20 * np.log10(1500 / rms)
        assert figures["output"]["psnr_db"] == pytest.approx(decibels, abs=0.1)
    for name in ("plain", "fine"):  # both maps show what the network did
        written = read_volume(tmp_path / f"{name}_disagreement.nii")
        np.testing.assert_allclose(written.array[compared], difference, atol=1.01)
        np.testing.assert_allclose(written.geometry.origin_mm, OBLIQUE.origin_mm, atol=1e-4)


def grid_energy(fine: np.ndarray) -> float:
    """Jumps between blocks against those within them."""
    steps = np.abs(np.diff(fine.astype(float), axis=2))
    border = np.arange(steps.shape[2]) % SCALE == SCALE - 1
    return float(steps[..., border].mean() / (steps[..., ~border].mean() + 1e-3))


def test_projection_leaves_no_blocks(tmp_path: Path) -> None:
    hu = smooth((2, 40, 40))
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    # The model shows a flat image, so that the whole scan has to come from the correction.
    flat = [model_of(lambda micro: 0 * micro)]
    fine, _ = super_resolve(
        tmp_path / "scan.nii", tmp_path / "fine.nii", models=flat, consistency="project"
    )
    assert grid_energy(fine) < 1.2
    assert grid_energy(repeated(hu)) > 100
    assert np.abs(pooled(fine) - hu).max() < 0.5


def test_projection_does_not_ring_beside_padding(tmp_path: Path) -> None:
    hu = np.full((1, 24, 24), -800, np.int16)
    hu[:, :, :8] = -3024
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    fine, _ = super_resolve(tmp_path / "scan.nii", tmp_path / "fine.nii", consistency="project")
    lung = fine[..., 8 * SCALE :]
    assert -900 < lung.min() <= lung.max() < -700
    assert np.abs(pooled(fine)[..., 8:] + 800).max() < 0.5


def test_projection_within_a_mask(tmp_path: Path) -> None:
    hu = smooth()
    mask = np.zeros(hu.shape, bool)
    mask[:, 5:20, 4:18] = True
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.mha")
    write_volume(Volume(mask, OBLIQUE), tmp_path / "mask.mha")
    fine, _ = super_resolve(
        tmp_path / "scan.mha",
        tmp_path / "fine.nii",
        models=[model_of(wrong)],
        region=str(tmp_path / "mask.mha"),
        outside="empty",
        consistency="project",
    )
    assert np.abs(pooled(fine) - hu)[mask].max() < 0.5
    assert (fine[~repeated(mask)] == WINDOW_HU[0]).all()


# ---- ensembles --------------------------------------------------------------------------------


def test_several_models_give_mean_and_deviation(tmp_path: Path) -> None:
    hu = smooth()
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    shifts = (0.0, 0.1, 0.4)
    models = [model_of(lambda micro, by=by: micro + by, f"{by}") for by in shifts]
    fine, report = super_resolve(tmp_path / "scan.nii", tmp_path / "fine.nii", models=models)
    half_window = (WINDOW_HU[1] - WINDOW_HU[0]) / 2
    expected = repeated(hu) + half_window * np.mean(shifts)
    np.testing.assert_allclose(fine, expected, atol=0.51)
    deviation = read_volume(tmp_path / "fine_deviation.nii").array
    assert deviation.shape == fine.shape
    np.testing.assert_allclose(deviation, half_window * np.std(shifts), atol=0.51)
    assert report["output"]["deviation"] == "fine_deviation.nii"
    assert [model["parameters_sha256"] for model in report["models"]] == ["0.0", "0.1", "0.4"]


def test_self_ensemble_is_the_mean_over_the_symmetries_of_the_square(tmp_path: Path) -> None:
    hu = smooth((2, 14, 19))
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")

    def slanted(micro: Any) -> Any:  # looks different on every turned slice
        return 0.5 * micro + 0.3 * jnp.roll(micro, SCALE, axis=2) + 0.1 * jnp.roll(micro, 3, axis=1)

    model = model_of(slanted, reach_px=40)
    fine, _ = super_resolve(
        tmp_path / "scan.nii", tmp_path / "fine.nii", models=[model], self_ensemble=True
    )
    normalised = (hu - WINDOW_HU[0]) * 2 / (WINDOW_HU[1] - WINDOW_HU[0]) - 1
    members = []
    for mirror in (False, True):
        for quarters in range(4):
            turned = np.rot90(normalised, quarters, (1, 2))
            turned = turned[:, ::-1] if mirror else turned
            sr = np.asarray(slanted(repeated(turned)[..., None]))[..., 0]
            sr = sr[:, ::-1] if mirror else sr
            members.append(np.rot90(sr, -quarters, (1, 2)))
    half_window = (WINDOW_HU[1] - WINDOW_HU[0]) / 2
    expected = (np.mean(members, axis=0) + 1) * half_window + WINDOW_HU[0]
    np.testing.assert_allclose(fine, expected, atol=0.52)
    deviation = read_volume(tmp_path / "fine_deviation.nii").array
    np.testing.assert_allclose(deviation, np.std(members, axis=0) * half_window, atol=0.52)
    assert deviation.max() > 10


def test_an_ensemble_in_a_mask_that_leaves_slices_out(tmp_path: Path) -> None:
    hu = smooth()
    mask = np.zeros(hu.shape, bool)
    mask[1, 4:9, 3:20] = True
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.mha")
    write_volume(Volume(mask, OBLIQUE), tmp_path / "mask.mha")
    models = [model_of(lambda micro, by=by: micro + by, f"{by}") for by in (0.0, 0.4)]
    region = str(tmp_path / "mask.mha")
    super_resolve(tmp_path / "scan.mha", tmp_path / "fine.nii", models=models, region=region)
    deviation = read_volume(tmp_path / "fine_deviation.nii").array
    np.testing.assert_array_equal(deviation, np.where(repeated(mask), 150, 0))


def test_models_of_several_scales_are_refused(scan: Path, tmp_path: Path) -> None:
    models = [REPEATING, model_of(negative, scale=4)]
    with pytest.raises(UserError, match="scales of 4 and 8"):
        super_resolve(scan, tmp_path / "fine.nii", models=models)
