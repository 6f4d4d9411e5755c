"""Preparations that are stopped, meet bad cases, or meet each other."""

import dataclasses
import json
import os

import chest
import numpy as np
import preparing
import pytest
from preparing import RECORDS, hashes, killed, run, small_flags, small_options
from scan_files import UIDS, write_dicom
from small_volumes import write_clinical

from data_pipelines import dataset_card
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.prepare import prepare
from data_pipelines.volumes import write_volume


@pytest.fixture
def scans(tmp_path):
    return preparing.write_scans(tmp_path / "scans")


@pytest.fixture
def output(tmp_path):
    """Of which the folder holds nothing else."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made" / "dataset"


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of the same scans, prepared undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(small_options(preparing.write_scans(folder / "scans"), folder / "dataset"))
    return hashes(folder / "dataset")


def left(output):
    return sorted(path.name for path in output.parent.iterdir())


@pytest.mark.parametrize(("place", "finished"), [("m1.mha", 4), (RECORDS, 7)])
def test_a_killed_preparation_goes_on_to_the_same_end(scans, output, expected, place, finished):
    killed(scans, output, place)
    assert left(output) == [".dataset.partial"]
    done = run(*small_flags(scans, output))
    assert (done.returncode, done.stderr) == (0, f"{finished} of 7 cases were already staged\n")
    assert left(output) == ["dataset"]
    assert hashes(output) == expected


def test_what_other_options_or_other_files_staged_is_not_taken(
    scans, tmp_path, output, expected, capfd
):
    killed(scans, output, RECORDS, seed=1)
    prepare(small_options(scans, output))
    assert "already staged" not in capfd.readouterr().err
    assert hashes(output) == expected
    other = tmp_path / "other"
    killed(scans, other, RECORDS, micro_air=100.0, micro_tissue=200.0)
    os.utime(scans / "clinical" / "c1.nii.gz")
    prepare(small_options(scans, other))
    assert "2 of 7 cases were already staged" in capfd.readouterr().err
    assert hashes(other) == expected


def damaged(scans):
    """Three bad clinical files, last by name, each bad in its own way."""
    whole = (scans / "clinical" / "c0.nii.gz").read_bytes()
    (scans / "clinical" / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "clinical" / "text.nii.gz").write_text("not a scan")
    write_clinical(scans / "clinical" / "small.nii.gz", 9, (2, 4, 24))
    return ("small.nii.gz", "text.nii.gz", "truncated.nii.gz")


def test_a_bad_case_ends_the_run_and_the_mended_one_goes_on(scans, output, expected):
    path = scans / "micro" / "m2.mha"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    failed = run(*small_flags(scans, output))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {path} ")
    assert failed.stderr.endswith(
        f"; finished cases are kept in {output.parent}/.dataset.partial, "
        "the same command goes on there\n"
    )
    assert failed.stderr.count("\n") == 1
    path.write_bytes(whole)
    done = run(*small_flags(scans, output))
    assert done.stderr == "5 of 7 cases were already staged\n"
    assert hashes(output) == expected


def test_bad_cases_are_reported_and_left_out(scans, tmp_path, output, expected):
    names = damaged(scans)
    done = run(*small_flags(scans, output), "--skip-bad")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"skipped: {scans}/clinical/{name} ")
    card = dataset_card.load(output)
    assert [(case.domain, case.name) for case in card.skipped] == [("clinical", n) for n in names]
    for case, line in zip(card.skipped, lines, strict=True):
        assert case.reason == line.removeprefix(f"skipped: {scans}/clinical/").split(";")[0]
    assert str(tmp_path) not in (output / dataset_card.CARD_NAME).read_text()
    found = hashes(output)
    found.pop(dataset_card.CARD_NAME)
    assert found.items() <= expected.items(), "as if the bad files were not there"
    assert left(output) == ["dataset"]


def test_the_bad_case_may_come_first(scans, output):
    (scans / "micro" / "a.mha").write_text("not a scan")
    card = prepare(small_options(scans, output, skip_bad=True))
    assert [case.name for case in card.micro.cases] == [f"m{i}.mha" for i in range(4)]
    splits = [case.split for case in card.micro.cases]
    assert (splits.count("train"), splits.count("validation")) == (3, 1)
    assert card.micro.patches("train") == 36


def test_the_only_case_that_is_left_serves_both_splits(scans, tmp_path, output):
    for number in (0, 2):
        (scans / "clinical" / f"c{number}.nii.gz").write_text("not a scan")
    card = prepare(small_options(scans, output, skip_bad=True))
    assert [(case.name, case.split) for case in card.clinical.cases] == [("c1.nii.gz", "both")]
    for number in (0, 2):
        (scans / "clinical" / f"c{number}.nii.gz").unlink()
    alone = prepare(small_options(scans, tmp_path / "alone"))
    assert dataclasses.replace(card, skipped=()) == alone


def test_no_case_is_left(scans, output):
    for path in (scans / "clinical").iterdir():
        path.write_text("not a scan")
    with pytest.raises(UserError, match=r"no clinical case is left: .*c0\.nii\.gz"):
        prepare(small_options(scans, output, skip_bad=True))


def test_a_scan_without_lung_is_left_out(scans, output):
    hu, _ = chest.body((4.0, 4.0, 10.0))
    volume = Volume(hu.astype(np.int16), Geometry((4.0, 4.0, 10.0)))
    for number in range(3):
        write_volume(volume, scans / "clinical" / f"c{number}.nii.gz", overwrite=True)
    write_clinical(scans / "clinical" / "z.nii.gz", 1)
    options = small_options(scans, output, skip_bad=True, clinical_mask="lung")
    (skipped,) = prepare(options).skipped
    assert (skipped.name, skipped.reason[:28]) == ("z.nii.gz", "no lung found in z.nii.gz (0")


def test_reasons_name_no_person(scans, output):
    folder = scans / "clinical" / "case"
    array = np.random.default_rng(0).integers(-1000, 200, (6, 24, 24)).astype(np.int16)
    described = {index: {"0008|103e": "Doe John"} for index in range(6)}
    for series in UIDS:
        write_dicom(folder, array, series=series, changed=described)
    skipped = prepare(small_options(scans, output, skip_bad=True)).skipped
    assert [case.reason for case in skipped] == ["case holds 2 DICOM series"]
    folder = scans / "clinical" / "sizes"
    for path in write_dicom(folder, array):
        path.rename(folder / f"Doe^John {path.name}")
    write_dicom(folder, array[:, :20], suffix="")
    prepare(small_options(scans, output, skip_bad=True, overwrite=True))
    text = (output / dataset_card.CARD_NAME).read_text()
    assert "sizes and sizes differ in size" in text
    for private in ("Doe", "John", *UIDS.values()):
        assert private not in text


def test_a_worker_that_is_killed_is_no_bad_case(scans, output, monkeypatch):
    monkeypatch.setattr("data_pipelines.prepare.stage_case", preparing.dying_case)
    with pytest.raises(UserError, match="a worker process was killed, most likely for lack of"):
        prepare(small_options(scans, output, workers=2, skip_bad=True))


def test_a_second_preparation_is_refused(scans, output, expected):
    process = preparing.started(scans, output, "m1.mha")
    try:
        preparing.wait_for_pids(process, output.parent, 1)
        refused = run(*small_flags(scans, output))
        assert refused.returncode == 1
        assert refused.stderr == (
            f"error: {output} is being made by another process; "
            "wait for it, or choose another directory\n"
        )
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=30)
    prepare(small_options(scans, output))
    assert hashes(output) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 8}, "m0.mha has slices of 40 x 40 pixels, too few for micro patches of 48 x 48"),
        ({"resample_um": 1.0}, "--resample_um=1"),
    ],
)
def test_options_that_do_not_fit_the_second_domain(scans, output, changes, words):
    with pytest.raises(UserError) as error:
        prepare(small_options(scans, output, **changes))
    assert words in str(error.value)
    assert "; finished cases are kept in" in str(error.value)
    assert left(output) == [".dataset.partial"]
    prepare(small_options(scans, output))
    assert left(output) == ["dataset"]


def test_a_card_without_the_list_of_skipped_cases_is_read(scans, output):
    card = prepare(small_options(scans, output))
    data = dataclasses.asdict(card)
    del data["skipped"]
    (output / dataset_card.CARD_NAME).write_text(json.dumps(data))
    assert dataset_card.load(output) == card
