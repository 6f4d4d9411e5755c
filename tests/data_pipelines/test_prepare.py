import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tensorflow as tf
import tensorflow_datasets as tfds
from preparing import hashes, run, small_options, started, wait_for_pids, write_scans
from small_volumes import write_micro

from data_pipelines import dataset_card
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume, axial
from data_pipelines.phantom_dataset import prepare_phantom
from data_pipelines.prepare import prepare
from data_pipelines.volumes import read_volume, write_volume


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def prepared(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "dataset"
    return output, prepare(small_options(scans, output))


def records(directory, domain, split):
    builder = tfds.builder_from_directory(directory / "ct_patches" / domain / "1.0.0")
    return list(builder.as_dataset(split=split).as_numpy_iterator())


def test_each_record_is_the_patch_of_the_scan_at_its_position(scans, prepared):
    output, card = prepared
    assert card == dataset_card.load(output)
    for name in dataset_card.DOMAINS:
        domain = card.domain(name)
        for split in dataset_card.SPLITS:
            found = records(output, name, split)
            assert len(found) == domain.patches(split) > 0
            for record in found:
                case = domain.cases[record["case"]]
                volume = read_volume(scans / name / case.name)
                array = (axial(volume) if name == "clinical" else volume).array
                row, column = record["row"], record["column"]
                expected = array[
                    record["slice"], row : row + domain.patch_px, column : column + domain.patch_px
                ]
                values = record["patch"] * case.stored_step + case.stored_offset
                assert case.split == split
                assert record["patch"].dtype == domain.dtype
                np.testing.assert_allclose(values, expected, rtol=0, atol=0.501 * case.stored_step)
                if case.stored_step == 1:
                    np.testing.assert_array_equal(values, expected)


def test_the_extremes_of_int16_and_uint16_survive(prepared):
    output, card = prepared
    stored = np.concatenate(
        [r["patch"].ravel() for s in dataset_card.SPLITS for r in records(output, "micro", s)]
    )
    assert (card.clinical.dtype, card.micro.dtype) == ("int16", "uint16")
    assert (stored.min(), stored.max()) == (0, 65535)
    # One domain has one dtype: int16 volumes are shifted when others need uint16.
    assert [case.stored_offset for case in card.micro.cases[:2]] == [0, -32768]


def test_the_split_is_by_case_and_every_split_has_one(prepared):
    _, card = prepared
    for domain in (card.clinical, card.micro):
        splits = [case.split for case in domain.cases]
        assert splits.count("validation") == 1
        assert splits.count("train") == len(splits) - 1


def test_worker_count_changes_no_byte(scans, prepared, tmp_path):
    prepare(small_options(scans, tmp_path / "dataset", workers=3))
    assert hashes(tmp_path / "dataset") == hashes(prepared[0])


def test_a_single_case_is_divided_by_slices(scans, tmp_path):
    path = write_micro(tmp_path / "only.mha", 20, shape=(20, 12, 12))
    options = small_options(
        scans,
        tmp_path / "dataset",
        micro=(str(path),),
        micro_any_plane=True,
        clinical_patch=4,
        scale=1,
        patches_per_volume=60,
        validation_fraction=0.25,
    )
    card = prepare(options)
    (case,) = card.micro.cases
    assert (case.split, case.validation_from_slice) == ("both", 15)
    assert case.patches == {"train": 45, "validation": 15}
    array = read_volume(path).array
    planes = set()
    for split in dataset_card.SPLITS:
        for record in records(tmp_path / "dataset", "micro", split):
            plane, index = int(record["plane"]), int(record["slice"])
            row, column = record["row"], record["column"]
            patch = np.moveaxis(array, plane, 0)[index, row : row + 4, column : column + 4]
            np.testing.assert_array_equal(record["patch"], patch)
            first = index if plane == 0 else int(row)
            last = first if plane == 0 else first + 3
            assert last < 15 if split == "train" else first >= 15
            planes.add(plane)
    assert planes == {0, 1, 2}


def test_resampling_averages_and_reports_the_new_spacing(scans, tmp_path):
    options = small_options(scans, tmp_path / "d", clinical_patch=4, resample_um=400.0)
    card = prepare(options)
    case = card.micro.cases[2]
    assert case.shape_px == (4, 20, 20)
    assert case.spacing_mm == pytest.approx((0.4, 0.4, 0.2))
    values = np.concatenate(
        [
            r["patch"].ravel() * case.stored_step + case.stored_offset
            for s in dataset_card.SPLITS
            for r in records(tmp_path / "d", "micro", s)
            if r["case"] == 2
        ]
    )
    assert 0.5 < np.std(values) < 2.0  # of noise with deviation 3


def test_the_embedded_phantoms_take_the_same_way(tmp_path):
    card = prepare_phantom(
        tmp_path / "dataset",
        cases=2,
        size_px=128,
        slices=2,
        held_out_cases=1,
        patches_per_volume=4,
        clinical_patch=8,
        scale=4,
        workers=1,
    )
    assert card == dataset_card.load(tmp_path / "dataset")
    (pair,) = card.held_out
    clinical, micro = (read_volume(tmp_path / "dataset" / p) for p in (pair.clinical, pair.micro))
    assert micro.array.shape == (2, 128, 128)
    assert clinical.array.shape == (2, 32, 32)
    for case in card.clinical.cases + card.micro.cases:
        assert case.normalisation() == pytest.approx((1 / 700, 3 / 7))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clinical": ("nowhere",)}, "nowhere"),
        ({"scale": 0}, "--scale=0"),
        ({"runner": "spark"}, "--runner=spark: give one of local, beam"),
        ({"beam_options": ("--x",)}, "--beam_options=--x needs --runner=beam"),
        ({"validation_fraction": 1.0}, "--validation_fraction"),
        ({"micro_air": 1.0}, "--micro_tissue"),
        ({"patches_per_volume": 10**4}, "of 10000 patches of 6 x 6 pixels"),
        ({"clinical_mask": "lung"}, "no lung"),
        ({"resample_um": np.inf}, "--resample_um=inf"),
        ({"micro_air": np.nan, "micro_tissue": 1.0}, "--micro_air=nan"),
        ({"micro_air": 0.0, "micro_tissue": -np.inf}, "--micro_tissue=-inf"),
        ({"micro_spacing": (1, 0, 2)}, "--micro_spacing=1,0,2: give sizes above 0 mm"),
        ({"clinical_spacing": (1, 1, np.nan)}, "--clinical_spacing=1,1,nan"),
        ({"clinical_patch": 25}, "c0.nii.gz has slices of 24 x 24 pixels, too few for clinical"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(scans, tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        prepare(small_options(scans, tmp_path / "dataset", **changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "spacing_mm", "changes", "words"),
    [
        (None, (0.2, 0.2, 0.5), {"micro_any_plane": True}, "has voxels of 0.2 x 0.2 x 0.5 mm;"),
        (np.full((4, 40, 40), 7, np.uint8), (0.2, 0.2, 0.2), {}, "has no contrast (nearly all"),
    ],
)
def test_what_is_wrong_with_a_scan_is_said_with_its_path(
    scans, tmp_path, array, spacing_mm, changes, words
):
    path = write_micro(tmp_path / "m.mha", 1)
    array = read_volume(path).array if array is None else array
    write_volume(Volume(array, Geometry(spacing_mm)), path, overwrite=True)
    with pytest.raises(UserError) as error:
        prepare(small_options(scans, tmp_path / "dataset", micro=(str(path),), **changes))
    assert str(error.value).startswith(f"{path} {words}")
    assert "\n" not in str(error.value)


def test_new_folders_of_a_failed_run_vanish(scans, tmp_path):
    options = small_options(scans, tmp_path / "new" / "folder" / "dataset")
    with pytest.raises(UserError, match="no lung"):
        prepare(dataclasses.replace(options, clinical_mask="lung"))
    assert list(tmp_path.iterdir()) == []
    prepare(options)
    assert dataset_card.load(options.output)


def test_a_locked_output_is_said_before_the_work(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr("data_pipelines.prepare.stage_case", None)
    with pytest.raises(UserError, match="cannot be written: Permission denied in") as error:
        prepare(small_options(scans, tmp_path / "new" / "dataset"))
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_kept_unless_overwritten(scans, prepared, tmp_path):
    output, card = prepared
    before = hashes(output)
    with pytest.raises(UserError, match="pass --overwrite"):
        prepare(small_options(scans, output))
    failing = small_options(scans, output, overwrite=True, clinical_mask="lung")
    with pytest.raises(UserError, match="no lung"):
        prepare(failing)
    assert hashes(output) == before
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not a dataset; choose another"):
            prepare(small_options(scans, tmp_path, overwrite=overwrite))
    assert prepare(small_options(scans, output, overwrite=True)) == card
    assert hashes(output) == before


def test_the_command_line(scans, tmp_path):
    """Errors of worker processes are one line; dashes and underscores both work."""
    flags = [
        f"--clinical={scans}/clinical/c[01].nii.gz,{scans}/clinical/c2.nii.gz",
        f"--micro={scans}/micro",
        f"--output={tmp_path / 'dataset'}",
        "--clinical-mask=none",
        "--micro_mask=none",
        "--clinical-patch=6",
        "--scale=4",
    ]
    failed = run(*flags, "--workers=2", "--patches-per-volume=3000")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith(
        f"error: {scans}/clinical/c0.nii.gz: found 2166 of 3000 patches of 6 x 6 pixels"
    )
    assert failed.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    failed = run(*flags, "--clinical-spacing=1,2")
    assert failed.stderr == "error: --clinical_spacing=1,2: give x,y,z in mm\n"
    done = run(*flags, "--workers=1", "--patches_per_volume=5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "clinical: 3 cases, 10 training and 5 validation patches" in done.stdout
    assert (tmp_path / "dataset" / "sheet.png").stat().st_size > 10_000


def write_tiff(path, domain):
    rng = np.random.default_rng(0)
    if domain == "clinical":
        array = rng.integers(-1000, 200, (3, 30, 30)).astype(np.int16)
    else:
        array = rng.integers(0, 255, (3, 30, 30)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return str(path)


@pytest.mark.parametrize("domain", dataset_card.DOMAINS)
def test_tiff_needs_a_spacing(scans, tmp_path, domain):
    path = write_tiff(tmp_path / "stack.tif", domain)
    options = small_options(scans, tmp_path / "dataset", **{domain: (path,)})
    with pytest.raises(UserError) as error:
        prepare(options)
    assert str(error.value).startswith(
        f"{path} has no spacing in mm; give --{domain}-spacing=x,y,z"
    )
    spacing = {f"{domain}_spacing": (0.4, 0.4, 1.0)}
    (case,) = prepare(dataclasses.replace(options, **spacing)).domain(domain).cases
    assert case.spacing_mm == (0.4, 0.4, 1.0)


def test_spacing_flags_leave_other_files_theirs(scans, tmp_path):
    spacing = {"clinical_spacing": (1, 2, 3), "micro_spacing": (1, 2, 3)}
    card = prepare(small_options(scans, tmp_path / "dataset", **spacing))
    assert card.clinical.cases[0].spacing_mm == pytest.approx((0.8, 0.8, 2.0))
    assert card.micro.cases[0].spacing_mm == pytest.approx((0.2, 0.2, 0.2))


def test_pixels_that_do_not_fit(scans, tmp_path, capfd):
    path = write_tiff(tmp_path / "stack.tif", "micro")
    options = small_options(scans, tmp_path / "dataset", micro=(path,))
    prepare(dataclasses.replace(options, micro_spacing=(0.4, 0.4, 1.0)))
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert "2 times as large" in warning
    assert "--resample_um=200" in warning


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_no_dataset_no_process_and_can_be_repeated(
    scans, prepared, tmp_path, how
):
    output = tmp_path / "dataset"
    partial = tmp_path / ".dataset.partial"
    process = started(scans, output, place="", workers=2)
    workers = wait_for_pids(process, tmp_path, 2)
    process.send_signal(how)  # to the parent alone, as a job scheduler does
    assert process.wait(timeout=30) != 0
    assert not output.exists()
    assert partial.exists() == (how == signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    prepare(small_options(scans, output))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset"]
    assert hashes(output) == hashes(prepared[0])


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_card_names_no_folders(scans, prepared):
    text = json.dumps(dataclasses.asdict(prepared[1]))
    assert str(scans) not in text
    assert "c0.nii.gz" in text


def test_records_have_the_documented_size(prepared):
    output, card = prepared
    for domain in (card.clinical, card.micro):
        path = output / next(iter(domain.shards))
        raw = next(tf.data.TFRecordDataset([str(path)]).as_numpy_iterator())
        assert len(raw) < 2 * domain.patch_px**2 + 200
