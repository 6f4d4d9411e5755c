"""Whole scans, streamed: formats, parts, masks, consistency, ensembles, interruptions."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from chest import body
from commands import REPOSITORY
from models import REPEATING, SCALE, WINDOW_HU, model_of
from scan_files import OBLIQUE, write_dicom, write_images
from scipy import ndimage

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.lung_mask import lung_mask, streamed_lung_mask
from data_pipelines.unfinished_output import finish_publishing
from data_pipelines.volumes import read_volume, write_volume
from mmsr_jax.inference import scan as scan_module
from mmsr_jax.inference.options import Options
from mmsr_jax.inference.scan import super_resolve_scan

FORMATS = (".ome.zarr", ".nii", ".nii.gz", ".mha", ".nrrd", ".tif", "")


def noise(shape: tuple[int, int, int] = (4, 20, 24), seed: int = 0) -> np.ndarray:
    """Hounsfield units with air and tissue, and values beyond any window."""
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


def smooth(shape: tuple[int, int, int] = (3, 30, 26)) -> np.ndarray:
    """Hounsfield units within the window, as smooth as a scan."""
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), (0, 1.2, 1.2))
    return np.rint(-600 + 250 * field / field.std()).clip(-950, 450).astype(np.int16)


def pooled(fine: np.ndarray) -> np.ndarray:
    slices, rows, columns = fine.shape
    blocks = fine.reshape(slices, rows // SCALE, SCALE, columns // SCALE, SCALE)
    return blocks.mean(axis=(2, 4), dtype=np.float64)


def repeated(coarse: np.ndarray) -> np.ndarray:
    return coarse.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_volume(Volume(noise(), OBLIQUE), tmp_path / "scan.nrrd")
    return tmp_path / "scan.nrrd"


def super_resolve(
    scan: Path, output: Path, *, models: Any = (REPEATING,), **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """(what is written, the report)."""
    report = super_resolve_scan(models, Options(scan, output, **options))
    return read_volume(output).array, report


# ---- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_holds_the_same(extension: str, scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / f"fine{extension}"
    super_resolve(scan, output)
    written = read_volume(output)
    expected = repeated(noise().clip(*map(int, WINDOW_HU)))
    np.testing.assert_array_equal(written.array, expected)
    geometry = OBLIQUE.finer_in_plane(SCALE)
    for name in ("spacing_mm", "origin_mm", "direction"):
        found, meant = (getattr(which, name) for which in (written.geometry, geometry))
        np.testing.assert_allclose(found, meant, atol=1e-4)
    names = {f"fine{extension}", f"fine{extension}.json", f"fine_disagreement{extension}"}
    assert {path.name for path in output.parent.iterdir()} == names


def test_every_kind_of_scan(tmp_path: Path) -> None:
    hu = noise((11, 6, 8))
    volume = Volume(hu, OBLIQUE)
    kinds = [f"scan{extension}" for extension in FORMATS if extension]
    for name in kinds:
        write_volume(volume, tmp_path / name)
    write_dicom(tmp_path / "dicom", hu)
    expected, _ = super_resolve(tmp_path / "scan.nii", tmp_path / "expected.nii")
    for name in [*kinds, "dicom"]:
        fine, _ = super_resolve(tmp_path / name, tmp_path / f"fine_{name.replace('.', '_')}.nii")
        np.testing.assert_array_equal(fine, expected)


def test_images_without_a_spacing_need_one(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder)
    for path in folder.iterdir():
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(stored - 1000), str(path.with_suffix(".tif")))
        path.unlink()
    with pytest.raises(UserError, match="--spacing=x,y,z"):
        super_resolve(folder, tmp_path / "fine.nii")
    super_resolve(folder, tmp_path / "fine.nii", spacing_mm=(0.8, 0.4, 2.0))
    assert read_volume(tmp_path / "fine.nii").geometry.spacing_mm == pytest.approx((0.1, 0.05, 2.0))


# ---- where the pixels are spent ---------------------------------------------------------------


def test_a_box_of_voxels_is_cut_from_the_whole(scan: Path, tmp_path: Path) -> None:
    whole, _ = super_resolve(scan, tmp_path / "whole.nii")
    part, report = super_resolve(scan, tmp_path / "part.nii", roi="3:20,:9,1:", slices=":3")
    x, y = slice(3 * SCALE, 20 * SCALE), slice(0, 9 * SCALE)
    np.testing.assert_array_equal(part, whole[1:3, y, x])
    assert report["output"]["voxels"] == [17 * SCALE, 9 * SCALE, 2]
    images = [sitk.ReadImage(str(tmp_path / f"{name}.nii")) for name in ("whole", "part")]
    corner = images[0].TransformIndexToPhysicalPoint((3 * SCALE, 0, 1))
    np.testing.assert_allclose(images[1].GetOrigin(), corner, atol=1e-3)


def test_a_box_of_millimetres_holds_the_voxels_whose_centres_lie_within(tmp_path: Path) -> None:
    geometry = Geometry((2.0, 1.0, 3.0), (-10.0, 5.0, -100.0))
    write_volume(Volume(noise(), geometry), tmp_path / "scan.mha")
    _, report = super_resolve(
        tmp_path / "scan.mha", tmp_path / "fine.mha", roi="-6:3.9,5.5:10,-97.5:-200mm"
    )
    # x: -6 .. 2 are voxels 2 to 6; y: 6 .. 10 are 1 to 5; z: below the scan but for voxel 0
    assert report["output"]["voxels"] == [5 * SCALE, 5 * SCALE, 1]
    origin = read_volume(tmp_path / "fine.mha").geometry.origin_mm
    assert origin == pytest.approx((-6 - 1 + 1 / SCALE, 6 - 0.5 + 0.5 / SCALE, -100.0))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"roi": "1:2,3:4"}, "--roi=1:2,3:4: give three ranges"),
        ({"roi": "1:2,3:4,5"}, "'5' is no range"),
        ({"roi": "9:3,:,:"}, "'9:3' must rise and lie within 0:24"),
        ({"roi": ":,:,:9"}, "':9' must rise and lie within 0:4"),
        ({"roi": "a:b,1:2,1:2mm"}, "every range needs two numbers"),
        ({"roi": "5000:6000,0:1,0:1mm"}, "holds no voxel of the scan, which has 24 x 20 x 4"),
        ({"slices": "4:"}, "--slices=4:"),
        ({"slices": ":2", "roi": ":,:,2:"}, "--roi=:,:,2: and --slices=:2 holds no voxel"),
        ({"roi": "-inf:inf,0:1,0:1mm"}, "every range needs two numbers"),
        ({"roi": "nan:1,0:1,0:1mm"}, "every range needs two numbers"),
        ({"region": "nowhere.nii"}, "nowhere.nii does not exist"),
    ],
)
def test_parts_that_are_none(
    options: dict[str, str], problem: str, scan: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        super_resolve(scan, tmp_path / "fine.nii", **options)
    assert problem in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nrrd"]


def negative(micro: Any) -> Any:
    """A model whose output is told from an interpolation at a glance."""
    return -micro


@pytest.mark.parametrize("outside", ["bicubic", "empty"])
def test_a_mask_file_says_where_the_model_is_used(outside: str, tmp_path: Path) -> None:
    hu = smooth()
    mask = np.zeros(hu.shape, bool)
    mask[0, 4:9, 3:20] = mask[2, 15:16, 7:8] = True  # none in slice 1
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.mha")
    write_volume(Volume(mask, OBLIQUE), tmp_path / "mask.nii.gz")
    fine, _ = super_resolve(
        tmp_path / "scan.mha",
        tmp_path / "fine.nii",
        models=[model_of(negative)],
        region=str(tmp_path / "mask.nii.gz"),
        outside=outside,
    )
    inside = repeated(mask)
    low, high = WINDOW_HU
    opposite = repeated((low + high - hu).astype(np.int16))
    np.testing.assert_array_equal(fine[inside], opposite[inside])
    if outside == "empty":
        assert (fine[~inside] == low).all()
    else:
        zoomed = ndimage.zoom(hu * 1.0, (1, SCALE, SCALE), order=3, grid_mode=True, mode="nearest")
        assert np.corrcoef(zoomed[~inside], fine[~inside])[0, 1] > 0.995
        assert np.abs(pooled(fine)[1] - hu[1]).mean() < 20


def test_the_lung_is_found_on_the_fly(tmp_path: Path) -> None:
    hu, _ = body()
    hu = hu.astype(np.int16)
    geometry = Geometry((1.0, 1.0, 2.0))
    write_volume(Volume(hu, geometry), tmp_path / "chest.nii.gz")
    middle = len(hu) // 2
    fine, report = super_resolve(
        tmp_path / "chest.nii.gz",
        tmp_path / "fine.mha",
        region="lung",
        outside="empty",
        slices=f"{middle}:{middle + 1}",
    )
    low, high = map(int, WINDOW_HU)
    lung = lung_mask(hu, geometry.spacing_mm, "chest")[middle]
    mask = streamed_lung_mask(iter(hu), geometry.spacing_mm, "chest").grown(3.0)(middle)
    assert mask[lung].all()
    assert lung.sum() < mask.sum() < 0.6 * mask.size
    expected = np.where(mask, hu[middle].clip(low, high), low)
    np.testing.assert_array_equal(fine, repeated(expected[None]))
    assert (
        report["consistency"]["pixels"] == (mask & (hu[middle] >= low) & (hu[middle] <= high)).sum()
    )


def test_masks_on_another_grid_are_refused(scan: Path, tmp_path: Path) -> None:
    for name, volume in {
        "shape": Volume(noise((4, 20, 23)) > 0, OBLIQUE),
        "place": Volume(noise() > 0, Geometry(OBLIQUE.spacing_mm, (0, 0, 0), OBLIQUE.direction)),
    }.items():
        write_volume(volume, tmp_path / f"{name}.nii")
        with pytest.raises(UserError, match=f"{name}.nii has another grid than the scan"):
            super_resolve(scan, tmp_path / "fine.nii", region=str(tmp_path / f"{name}.nii"))
    write_volume(Volume(np.zeros((4, 20, 24), bool), OBLIQUE), tmp_path / "nothing.nii")
    with pytest.raises(UserError, match="has no voxel"):
        super_resolve(scan, tmp_path / "fine.nii", region=str(tmp_path / "nothing.nii"))


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


# ---- interruptions ----------------------------------------------------------------------------


class Stop(Exception):
    """Something that ends a run."""


def stopping_after(slices: int, stop: Callable[[], None], monkeypatch: Any) -> None:
    """Let the next run record a number of slices, then stop."""
    real = scan_module.UnfinishedOutput.record
    count = 0

    def record(self: Any, *arguments: Any) -> None:
        nonlocal count
        real(self, *arguments)
        count += 1
        if count == slices:
            stop()

    monkeypatch.setattr(scan_module.UnfinishedOutput, "record", record)


def raise_stop() -> None:
    raise Stop


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("extension", FORMATS)
def test_a_stopped_run_is_continued(
    extension: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = super_resolve(scan, tmp_path / "expected.nii", consistency="project")
    output = tmp_path / "out" / f"fine{extension}"
    with monkeypatch.context() as patch:
        stopping_after(2, raise_stop, patch)
        with pytest.raises(Stop):
            super_resolve(scan, output, consistency="project")
    assert names(output.parent) == {f".unfinished-{output.name}"}
    fine, report = super_resolve(scan, output, consistency="project")
    assert report["slices_of_an_earlier_run"] == 2
    assert report["consistency"]["pixels"] > 0
    np.testing.assert_array_equal(fine, expected)
    assert f".unfinished-{output.name}" not in names(output.parent)


def test_other_settings_begin_anew(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping_after(2, raise_stop, patch)
        with pytest.raises(Stop):
            super_resolve(scan, tmp_path / "fine.nii")
    fine, report = super_resolve(scan, tmp_path / "fine.nii", models=[model_of(negative, "other")])
    assert report["slices_of_an_earlier_run"] == 0
    low, high = WINDOW_HU
    expected = repeated(low + high - noise().clip(int(low), int(high)))
    np.testing.assert_array_equal(fine, expected)


KILLED_WHILE_PUBLISHING = """
import os, signal
from data_pipelines import unfinished_output as module
real, count = module.{function}, 0
def killed(*arguments, **options):
    global count
    count += 1
    if count > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
module.{function} = killed
"""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".ome.zarr", ""])
@pytest.mark.parametrize(("function", "after"), [("put_in_place", 1), ("_emptied", 1)])
def test_killed_while_publishing_nothing_is_lost(
    function: str, after: int, extension: str, overwrite: bool, scan: Path, tmp_path: Path
) -> None:
    """Between two renames, or before the working folder goes."""
    output = tmp_path / "out" / f"fine{extension}"
    if overwrite:
        super_resolve(scan, output, models=[model_of(negative, "before")])
    process = child(
        KILLED_WHILE_PUBLISHING.format(function=function, after=after),
        f"options = Options(Path('{scan}'), Path('{output}'), overwrite={overwrite})",
        "super_resolve_scan([REPEATING], options)",
    )
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    expected = repeated(noise().clip(*map(int, WINDOW_HU)))
    assert finish_publishing(output)
    np.testing.assert_array_equal(read_volume(output).array, expected)
    disagreement = read_volume(tmp_path / "out" / f"fine_disagreement{extension}").array
    assert disagreement.max() > 500  # beyond the window
    assert len(names(output.parent)) == 3
    again, _ = super_resolve(scan, output, overwrite=True)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("changed", ["mask", "place"])
def test_a_changed_mask_or_place_begins_anew(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, mask = tmp_path / "scan.ome.zarr", tmp_path / "mask.ome.zarr"
    inside = np.zeros((4, 20, 24), bool)
    inside[..., :5] = True
    write_volume(Volume(noise(), OBLIQUE), scan)
    write_volume(Volume(inside, OBLIQUE), mask)
    options = Options(scan, tmp_path / "fine.nii", region=str(mask) if changed == "mask" else "")
    with monkeypatch.context() as patch:
        stopping_after(2, raise_stop, patch)
        with pytest.raises(Stop):
            super_resolve_scan([REPEATING], options)
    if changed == "mask":
        inside[..., 5:9] = True
        write_volume(Volume(inside, OBLIQUE), mask, overwrite=True)
    else:
        move(scan)
    lines: list[str] = []
    report = super_resolve_scan([REPEATING], options, warn=lines.append)
    assert report["slices_of_an_earlier_run"] == 0
    assert lines == ["2 slices of an earlier run, with other settings, go"]


def move(path: Path) -> None:
    """Change where an OME-Zarr says that it lies."""
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["mmsr_jax"]["origin_mm"] = [1.0, 2.0, 3.0]
    (path / "zarr.json").write_text(json.dumps(metadata))


def child(*lines: str) -> subprocess.Popen:
    """A process of its own that super-resolves with the stub."""
    code = [
        "import sys",
        "sys.path[:0] = ['tests/helpers']",
        "from pathlib import Path",
        "from models import REPEATING",
        "from mmsr_jax.inference.options import Options",
        "from mmsr_jax.inference.scan import super_resolve_scan",
        *lines,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    hu = noise((40, 64, 64))
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    output = tmp_path / "out" / "fine.nii.gz"
    arguments = f"Options(Path('{tmp_path / 'scan.nii'}'), Path('{output}'))"
    process = child(f"super_resolve_scan([REPEATING], {arguments})")
    ledger = tmp_path / "out" / ".unfinished-fine.nii.gz" / "ledger-0.jsonl"
    deadline = time.monotonic() + 120
    while not (ledger.exists() and ledger.read_text().count("slice") > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    fine, report = super_resolve(tmp_path / "scan.nii", output)
    assert 3 < report["slices_of_an_earlier_run"] < 40
    np.testing.assert_array_equal(fine, repeated(hu.clip(*map(int, WINDOW_HU))))


def test_an_output_that_is_being_written_is_left_alone(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_run() -> None:
        with pytest.raises(UserError, match="is being written by another process"):
            super_resolve(scan, tmp_path / "fine.nii")

    stopping_after(1, second_run, monkeypatch)
    fine, _ = super_resolve(scan, tmp_path / "fine.nii")
    np.testing.assert_array_equal(fine, repeated(noise().clip(*map(int, WINDOW_HU))))


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".ome.zarr", ""])
def test_a_full_disk_leaves_nothing_under_the_name_and_resumes(
    extension: str, tmp_path: Path
) -> None:
    hu = noise((6, 64, 64))
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    output = tmp_path / "out" / f"fine{extension}"
    limit = 2_000_000 if extension == ".nii" else 4_000
    arguments = f"Options(Path('{tmp_path / 'scan.nii'}'), Path('{output}'))"
    process = child(
        "import resource, signal",
        "from data_pipelines.errors import reported_in_one_line",
        "from mmsr_jax.inference import scan",
        "real = scan._run",
        "def full(*arguments):",
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
        "    return real(*arguments)",
        "scan._run = full",
        "with reported_in_one_line():",
        f"    super_resolve_scan([REPEATING], {arguments})",
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert "cannot be written: File too large; what is done is kept" in line
    assert not output.exists()
    fine, _ = super_resolve(tmp_path / "scan.nii", output)
    np.testing.assert_array_equal(fine, repeated(hu.clip(*map(int, WINDOW_HU))))


# ---- several processes and devices ------------------------------------------------------------


@pytest.mark.parametrize("extension", [".ome.zarr", ".nii.gz"])
def test_processes_and_devices_share_a_scan(extension: str, tmp_path: Path) -> None:
    hu = noise((7, 20, 24))
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii")
    output = tmp_path / "out" / f"fine{extension}"
    arguments = f"Options(Path('{tmp_path / 'scan.nii'}'), Path('{output}'))"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        child(
            "import jax",
            "jax.config.update('jax_num_cpu_devices', 2)",
            f"jax.distributed.initialize('localhost:{port}', 2, {number})",
            f"report = super_resolve_scan([REPEATING], {arguments})",
            "print(report['machine']['processes'], report['machine']['device_count'])",
        )
        for number in range(2)
    ]
    for process in processes:
        printed, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert printed.split()[-2:] == ["2", "4"]
    np.testing.assert_array_equal(
        read_volume(output).array, repeated(hu.clip(*map(int, WINDOW_HU)))
    )
    report = json.loads((output.parent / f"{output.name}.json").read_text())
    assert report["consistency"]["pixels"] == ((hu >= -1000) & (hu <= 500)).sum()


def test_an_error_of_one_process_ends_all(scan: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = f"Options(Path('{scan}'), Path('{tmp_path / 'fine.nii'}'))"
    processes = [
        child(
            "import jax",
            f"jax.distributed.initialize('localhost:{port}', 2, {number})",
            "from data_pipelines.errors import UserError, reported_in_one_line",
            "from mmsr_jax.inference import scan",
            "def full(*arguments, **options):",
            "    raise UserError('the disk is full')",
            "scan.open_slices = full" if number else "",
            "with reported_in_one_line():",
            f"    super_resolve_scan([REPEATING], {arguments})",
        )
        for number in range(2)
    ]
    start = time.monotonic()
    lines = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: another process has failed; see what it says" in lines[0]
    assert "error: the disk is full" in lines[1]
    assert time.monotonic() - start < 60
    assert names(tmp_path) == {"scan.nrrd"}


# ---- memory -----------------------------------------------------------------------------------


def peak_bytes(scan: Path, output: Path) -> int:
    process = child(
        f"super_resolve_scan([REPEATING], Options(Path('{scan}'), Path('{output}')))",
        # Unlike ru_maxrss, it doesn't begin at the peak of the process that started this one.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])",
    )
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return 1024 * int(printed)


def test_memory_does_not_grow_with_the_slices(tmp_path: Path) -> None:
    size, peaks = 96, {}
    for slices in (20, 200):
        path = tmp_path / f"{slices}.nii.gz"
        write_volume(Volume(noise((slices, size, size)), OBLIQUE), path)
        peaks[slices] = peak_bytes(path, tmp_path / f"fine_{slices}.ome.zarr")
    output_bytes = 180 * 2 * (SCALE * size) ** 2  # of the slices that the second has more
    assert peaks[200] - peaks[20] < 0.1 * output_bytes


# ---- other bad input --------------------------------------------------------------------------


def test_a_scan_of_micro_resolution_is_warned_of(tmp_path: Path) -> None:
    geometry = Geometry((0.05, 0.05, 0.05))
    write_volume(Volume(noise(), geometry), tmp_path / "micro.nii")
    lines: list[str] = []
    options = Options(tmp_path / "micro.nii", tmp_path / "fine.nii")
    super_resolve_scan([REPEATING], options, warn=lines.append)
    assert len(lines) == 1
    assert "0.05 x 0.05 mm, as fine as micro CT" in lines[0]
    assert (tmp_path / "fine.nii").exists()


def test_outputs_inside_the_scan_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan", noise())
    before = names(tmp_path / "scan")
    for output in (tmp_path / "scan" / "fine.nii", tmp_path / "scan" / "new" / "fine.ome.zarr"):
        for scan in (tmp_path / "scan", tmp_path / "scan" / "a0.dcm"):
            with pytest.raises(UserError, match=r"is the scan, .*, or lies in it"):
                super_resolve(scan, output)
    with pytest.raises(UserError, match="is the scan"):
        super_resolve(tmp_path / "scan", tmp_path / "scan", overwrite=True)
    assert names(tmp_path / "scan") == before


def test_no_output_replaces_the_scan_or_the_mask(scan: Path, tmp_path: Path) -> None:
    write_volume(Volume(noise() > 0, OBLIQUE), tmp_path / "mask.nii")
    scan = scan.rename(tmp_path / "z_disagreement.nrrd")
    before = scan.read_bytes(), (tmp_path / "mask.nii").read_bytes()
    for output in ("z.nrrd", "z_disagreement.nrrd"):
        with pytest.raises(UserError, match="is the scan"):
            super_resolve(scan, tmp_path / output, overwrite=True)
    region = str(tmp_path / "mask.nii")
    with pytest.raises(UserError, match="is the region"):
        super_resolve(scan, tmp_path / "mask.nii", region=region, overwrite=True)
    assert before == (scan.read_bytes(), (tmp_path / "mask.nii").read_bytes())


def test_a_report_of_another_is_kept(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "fine.nii.json").write_text("dear")
    with pytest.raises(UserError, match=r"fine\.nii\.json exists"):
        super_resolve(scan, tmp_path / "fine.nii")
    assert (tmp_path / "fine.nii.json").read_text() == "dear"


def test_a_deviation_goes_with_the_output_that_it_belongs_to(scan: Path, tmp_path: Path) -> None:
    super_resolve(scan, tmp_path / "fine.nii", self_ensemble=True)
    assert (tmp_path / "fine_deviation.nii").exists()
    super_resolve(scan, tmp_path / "fine.nii", overwrite=True)
    assert not (tmp_path / "fine_deviation.nii").exists()


def test_nan_of_a_model_is_no_image(scan: Path, tmp_path: Path) -> None:
    def sometimes(micro: Any) -> Any:
        return jnp.where(micro > 0.9, jnp.nan, micro)

    with pytest.raises(UserError, match="gives NaN or infinite values"):
        super_resolve(scan, tmp_path / "fine.nii", models=[model_of(sometimes)])
    assert names(tmp_path) == {"scan.nrrd"}


def test_patients_are_kept_where_there_are_any(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no DICOM series, which --keep-patient is for"):
        super_resolve(scan, tmp_path / "fine.nii", keep_patient=True)
    with pytest.raises(UserError, match="is no DICOM; leave --keep-patient out"):
        super_resolve(scan, tmp_path / "fine", keep_patient=True)
    assert names(tmp_path) == {"scan.nrrd"}


def test_a_spacing_that_is_not_needed_is_said_to_be_ignored(scan: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    options = Options(scan, tmp_path / "fine.nii", spacing_mm=(1.0, 2.0, 3.0))
    super_resolve_scan([REPEATING], options, warn=lines.append)
    assert len(lines) == 1
    assert "--spacing is ignored" in lines[0]


def test_too_little_memory_is_one_line(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"need .* GB at once and 1e-06 GB of memory"):
        super_resolve(scan, tmp_path / "fine.nii", device_memory_gb=1e-6)
    assert names(tmp_path) == {"scan.nrrd"}


def test_a_volume_too_large_for_nifti_names_the_format_that_holds_it(tmp_path: Path) -> None:
    write_volume(Volume(noise((1, 20, 4200)), OBLIQUE), tmp_path / "wide.nrrd")
    with pytest.raises(UserError, match=r"NIfTI .*\.ome\.zarr"):
        super_resolve(tmp_path / "wide.nrrd", tmp_path / "fine.nii")
    assert names(tmp_path) == {"wide.nrrd"}
