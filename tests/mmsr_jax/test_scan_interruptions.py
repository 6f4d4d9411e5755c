"""Scans whose super-resolution is stopped, killed or shared, and its memory."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from models import REPEATING, SCALE, WINDOW_HU, model_of
from planted import Planted, leaks
from scan_files import OBLIQUE
from scans import FORMATS, child, names, negative, noise, repeated, super_resolve

from data_pipelines.errors import UserError
from data_pipelines.geometry import Volume
from data_pipelines.unfinished_output import finish_publishing
from data_pipelines.volumes import read_volume, write_volume
from mmsr_jax.inference import scan as scan_module
from mmsr_jax.inference.options import Options
from mmsr_jax.inference.scan import super_resolve_scan

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


@pytest.mark.parametrize("keep_patient", [False, True])
def test_a_continued_series_is_of_one_patient(
    keep_patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = Planted(1)
    series.write(tmp_path / "scan", noise().clip(-1000, -1))
    output = tmp_path / "out" / "fine"
    with monkeypatch.context() as patch:
        stopping_after(2, raise_stop, patch)
        with pytest.raises(Stop):
            super_resolve(tmp_path / "scan", output, keep_patient=keep_patient)
    unfinished = {Path(place).suffix for place, _ in leaks(output.parent, series)}
    assert unfinished == ({".dcm"} if keep_patient else set())
    _, report = super_resolve(tmp_path / "scan", output, keep_patient=keep_patient)
    assert report["slices_of_an_earlier_run"] == 2
    images = [pydicom.dcmread(path) for path in output.parent.rglob("*.dcm")]
    assert len(images) == 8  # with the disagreement
    for keyword in ("PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        (value,) = {str(image[keyword].value) for image in images}
        assert (value == series[keyword]) == keep_patient


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
