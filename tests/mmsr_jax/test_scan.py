"""Whole scans, streamed: formats, parts, masks, and input that is refused."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from chest import body
from models import REPEATING, SCALE, WINDOW_HU, model_of
from scan_files import OBLIQUE, write_dicom, write_images
from scans import FORMATS, names, negative, noise, pooled, repeated, smooth, super_resolve
from scipy import ndimage

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.lung_mask import lung_mask, streamed_lung_mask
from data_pipelines.volumes import read_volume, write_volume
from mmsr_jax.inference.options import Options
from mmsr_jax.inference.scan import super_resolve_scan

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
