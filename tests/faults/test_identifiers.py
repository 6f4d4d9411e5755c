"""What headers of DICOM say of people reaches nothing that the commands write, but where asked."""

import concurrent.futures
import gzip
import json
import os
import subprocess
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from chest import body
from commands import FinishedRun, error_line, last_error_line, run
from planted import Planted, declare, found, leaks
from preparing import RECORDS, killed, small_flags
from scans import FORMATS

from data_pipelines import dataset_card

GOOD, ODD, FIRST, SECOND, DAMAGED, MISSING, MISFIT, LOST, MICRO, OTHER = map(Planted, range(10))
ALL = (GOOD, ODD, FIRST, SECOND, DAMAGED, MISSING, MISFIT, LOST, MICRO, OTHER)
UIDS_TO_CHOOSE_FROM = {f"{series.case}:SeriesInstanceUID" for series in (FIRST, SECOND)}
KEPT = {
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
}


def noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 0, shape)


def hu(seed: int) -> np.ndarray:
    return noise(seed, (6, 24, 24))


def write_odd(folder: Path) -> list[Path]:
    """Values and VRs that libraries warn of, with the value, but that do not matter."""
    word = ODD.marker("LO", "an odd value")
    files = ODD.write(
        folder,
        hu(1),
        SpecificCharacterSet=word,
        StudyInstanceUID=ODD.marker("LO", "an odd StudyInstanceUID"),
        FrameOfReferenceUID=ODD.marker("LO", "an odd FrameOfReferenceUID"),
        StudyDate=word,
        StudyTime=word,
        PatientName=ODD["PatientName"] * 6,
        PatientID=ODD["PatientID"] * 6,
        PatientSex=word,
    )
    for path in files:
        declare(path, "PatientBirthName", "DS")
        declare(path, "StudyID", "IS")
    return files


def write_bad(folder: Path) -> None:
    """Series that are refused, in several ways."""
    for series in (FIRST, SECOND):
        series.write(folder / "two series", hu(2))
    for count, path in enumerate(DAMAGED.write(folder / "damaged", hu(3))):
        data = path.read_bytes()
        path.write_bytes(data if count % 2 else data[: len(data) // 2])
    MISSING.write(folder / "missing", hu(4))[2].unlink()
    for path in MISFIT.write(folder / "misfit", hu(5)):
        declare(path, "PixelSpacing", "LO")
    lost = LOST.write(folder / "lost", hu(6), ImagePositionPatient=None)
    for path in lost:
        image = pydicom.dcmread(path)
        image.add_new("ImagePositionPatient", "LO", LOST.marker("LO", "a name as position"))
        image.save_as(path)
        declare(path, "ImagePositionPatient", "DS")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clinical and micro scans, and bad ones. Not to be changed."""
    folder = tmp_path_factory.mktemp("planted")
    GOOD.write(folder / "clinical" / "good", hu(0))
    write_odd(folder / "clinical" / "odd")
    write_bad(folder / "bad")
    MICRO.write(folder / "micro" / "m0", noise(8, (4, 40, 40)), (0.2, 0.2, 0.2))
    OTHER.write(folder / "micro" / "m1", noise(9, (4, 40, 40)), (0.2, 0.2, 0.2))
    return folder


@pytest.fixture(scope="module")
def model(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as one file, which starts fast."""
    path = tmp_path_factory.mktemp("exported") / "model.mmsr"
    result = run("mmsr_jax.export", f"--run={finished.workdir}", f"--output={path}")
    assert result.returncode == 0, result.stderr
    return path


def run_in(folder: Path, module: str, *flags: object) -> subprocess.CompletedProcess:
    """Run a command that leaves nothing outside the folder."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    return run(module, *flags, TMPDIR=str(temporary))


def screen(result: subprocess.CompletedProcess) -> dict[str, bytes]:
    return {"screen": (result.stdout + result.stderr).encode()}


def assert_nothing(folder: Path, results: Iterable[subprocess.CompletedProcess] = ()) -> None:
    assert not leaks(folder, *ALL)
    for result in results:
        assert not leaks(screen(result), *ALL)


# ---- the search -------------------------------------------------------------------------------


def test_the_search_finds_every_marker_in_the_scans(scans: Path) -> None:
    assert len(GOOD.markers) > 1000
    names = {name for place, name in leaks(scans / "clinical" / "good", *ALL)}
    replaced = {"SOPInstanceUID"}  # by that of each slice
    assert names >= {f"0:{name}" for name in set(GOOD.markers.values()) - replaced}
    for name in ("PatientName", "PatientBirthDate", "FrameOfReferenceUID", "private utf-16-le"):
        assert f"0:{name}" in names


@pytest.mark.parametrize("keyword", ["PatientName", "StudyInstanceUID", "StudyDate", "StudyTime"])
def test_the_search_finds_a_marker_however_it_is_written(keyword: str, tmp_path: Path) -> None:
    value = GOOD[keyword]
    plain = f"a, {value} b".encode()
    for number, data in enumerate(
        (
            plain,
            value.lower().encode(),
            plain.decode().encode("utf-16-le"),
            plain.decode().encode("utf-16-be"),
            "".join(f"%{letter:02X}" for letter in plain).encode(),
            gzip.compress(b"x") + gzip.compress(plain),
            b"\x89PNG" + zlib.compress(plain),
        )
    ):
        (tmp_path / str(number)).write_bytes(data)
        assert (str(number), f"0:{keyword}") in leaks(tmp_path, *ALL)
    (tmp_path / value).mkdir()
    assert (value, f"0:{keyword}") in leaks(tmp_path, *ALL)


def test_libraries_warn_of_the_odd_values(scans: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        str(pydicom.dcmread(next((scans / "clinical" / "odd").iterdir())))
    assert "1:an odd value" in found(" ".join(str(w.message) for w in caught).encode(), ODD)


# ---- preparing --------------------------------------------------------------------------------


def test_a_dataset_holds_no_identifier(scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "dataset"
    flags = [*small_flags(scans, output)[1:], "--workers=2", "--skip-bad"]
    result = run_in(
        tmp_path, "data_pipelines.prepare", f"--clinical={scans}/clinical,{scans}/bad", *flags
    )
    assert result.returncode == 0, result.stderr
    card = dataset_card.load(output)
    assert [case.name for case in card.clinical.cases] == ["good", "odd"]
    assert sorted(case.name for case in card.skipped) == sorted(os.listdir(scans / "bad"))
    assert_nothing(tmp_path)
    assert {name for _, name in leaks(screen(result), *ALL)} == UIDS_TO_CHOOSE_FROM


def test_an_ambiguous_scan_is_refused_with_the_uids_to_choose_from(
    scans: Path, tmp_path: Path
) -> None:
    flags = [f"--clinical={scans}/bad/two series", *small_flags(scans, tmp_path / "dataset")[1:]]
    line = error_line(run_in(tmp_path, "data_pipelines.prepare", *flags))
    listing = (f"{series['SeriesInstanceUID']} (6 images of 24 x 24)" for series in (FIRST, SECOND))
    assert line.endswith("choose one with --series: " + "; ".join(listing))
    assert {name for _, name in leaks({"": line.encode()}, *ALL)} == UIDS_TO_CHOOSE_FROM
    assert_nothing(tmp_path)


def test_what_a_killed_preparation_leaves_holds_no_identifier(scans: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "scans"
    inputs.mkdir()
    (inputs / "micro").symlink_to(scans / "micro")
    (inputs / "clinical").mkdir()
    for case in (*(scans / "clinical").iterdir(), *(scans / "bad").iterdir()):
        (inputs / "clinical" / case.name).symlink_to(case)
    killed(inputs, tmp_path / "work" / "dataset", RECORDS, skip_bad=True)
    assert list((tmp_path / "work").rglob("case.json"))
    assert_nothing(tmp_path / "work")


# ---- super-resolving --------------------------------------------------------------------------


def test_no_format_holds_an_identifier(scans: Path, model: Path, tmp_path: Path) -> None:
    def super_resolved(extension: str) -> subprocess.CompletedProcess:
        return run_in(
            tmp_path,
            "mmsr_jax.super_resolve",
            f"--model={model}",
            f"--input={scans}/clinical/odd",
            f"--output={tmp_path}/fine{extension.replace('.', '_')}/fine{extension}",
        )

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        results = list(threads.map(super_resolved, FORMATS))
    for result in results:
        assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("*/fine*.json"))) == len(FORMATS)
    assert_nothing(tmp_path, results)
    assert "PatientPosition" in pydicom.dcmread(tmp_path / "fine" / "fine" / "0001.dcm")


def test_only_a_series_keeps_the_patient_who_was_asked_for(
    scans: Path, model: Path, tmp_path: Path
) -> None:
    for case in ("good", "odd"):
        result = run_in(
            tmp_path / case,
            "mmsr_jax.super_resolve",
            f"--model={model}",
            f"--input={scans}/clinical/{case}",
            f"--output={tmp_path}/{case}/fine",
            "--keep-patient",
        )
        assert result.returncode == 0, result.stderr
        assert not leaks(screen(result), *ALL)
        assert {Path(place).suffix for place, _ in leaks(tmp_path / case, *ALL)} == {".dcm"}
    assert {name for _, name in leaks(tmp_path / "good", *ALL)} == {f"0:{name}" for name in KEPT}
    source = pydicom.dcmread(scans / "clinical" / "good" / "0-0.dcm")
    for name in ("fine", "fine_disagreement"):
        image = pydicom.dcmread(tmp_path / "good" / name / "0003.dcm")
        assert all(image[keyword].value == source[keyword].value for keyword in KEPT)


@pytest.mark.parametrize(
    ("case", "listed"), [("two series", UIDS_TO_CHOOSE_FROM), ("misfit", set())]
)
def test_a_scan_that_is_not_super_resolved(
    case: str, listed: set[str], scans: Path, model: Path, tmp_path: Path
) -> None:
    result = run_in(
        tmp_path,
        "mmsr_jax.super_resolve",
        f"--model={model}",
        f"--input={scans}/bad/{case}",
        f"--output={tmp_path}/fine",
    )
    line = last_error_line(result)
    assert {name for _, name in leaks({"": line.encode()}, *ALL)} == listed
    assert_nothing(tmp_path)


def test_an_evaluation_holds_no_identifier(copied: Path, tmp_path: Path) -> None:
    spacing_mm = (2.0, 2.0, 25.0)
    chest = body(spacing_mm)[0].clip(-1000, -1)
    GOOD.write(tmp_path / "scans" / "chest", chest, spacing_mm)
    MICRO.write(tmp_path / "scans" / "micro", noise(8, (2, 128, 128)), (0.1, 0.1, 0.1))
    result = run_in(
        tmp_path / "written",
        "mmsr_jax.evaluate",
        f"--run={copied}",
        "--phantoms=1",
        f"--clinical={tmp_path}/scans/chest",
        f"--micro={tmp_path}/scans/micro",
    )
    assert result.returncode == 0, result.stderr
    titles = {section["title"] for section in evaluation_sections(copied)}
    assert "Consistency on clinical scans" in titles
    assert_nothing(copied, [result])
    assert_nothing(tmp_path / "written")


def evaluation_sections(directory: Path) -> list[dict]:
    return json.loads((directory / "evaluation.json").read_text())["sections"]
