"""Super-resolution of scans in real files, from the command line and from Python."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from commands import REPOSITORY, SMALL, FinishedRun, error_line, finish, run, start
from models import REPEATING, SCALE
from scan_files import OBLIQUE, UIDS, rotated, write_dicom
from scipy.spatial.transform import Rotation

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.intensity import clinical_intensity, to_hu
from data_pipelines.volumes import read_volume, write_volume
from mmsr_jax.inference import trained
from mmsr_jax.inference.options import Options, output_paths
from mmsr_jax.inference.scan import super_resolve_scan
from mmsr_jax.inference.trained import TrainedModel, load_model

NEWEST = str(SMALL["steps"])


def chest(shape: tuple[int, int, int] = (3, 20, 24), seed: int = 0) -> np.ndarray:
    """Hounsfield units with air and tissue, and values beyond any window."""
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    write_volume(Volume(chest(), OBLIQUE), path)
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder for outputs."""
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run's network repeats pixels, so that places are seen in the output exactly."""
    monkeypatch.setattr(trained, "load_model", lambda run, checkpoint: REPEATING)


def super_resolve(
    run: Path, scan: Path, output: Path, *, checkpoint: str = "last", **options: object
) -> Volume:
    """What is written of a scan with one run."""
    options = Options(scan=scan, output=output, **options)
    output_paths(options, ensemble=False)  # the command line checks these before it loads a run
    super_resolve_scan([trained.load_model(run, checkpoint)], options)
    return read_volume(output)


# ---- where the output lies --------------------------------------------------------------------


def tilted(seed: int) -> tuple[float, ...]:
    """Random direction cosines, of slices that are still nearest to axial ones."""
    rotation = Rotation.from_rotvec(np.random.default_rng(seed).uniform(-0.4, 0.4, 3))
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], 3)
    return tuple((rotation.as_matrix() * flips).ravel().tolist())


def distance_px(a: tuple[float, ...], b: tuple[float, ...], fine: sitk.Image) -> float:
    """Distance of two physical points in the smallest spacing of the output."""
    return float(np.linalg.norm(np.subtract(a, b)) / min(fine.GetSpacing()))


@pytest.mark.usefixtures("nearest")
@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("seed", range(5))
def test_a_point_has_the_same_coordinates_in_input_and_output(
    seed: int, extension: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    geometry = Geometry(
        tuple(rng.uniform(0.3, 3.0, 3).tolist()),
        tuple(rng.uniform(-900, 900, 3).tolist()),
        tilted(seed),
    )
    source, target = tmp_path / f"scan{extension}", tmp_path / f"fine{extension}"
    write_volume(Volume(chest(seed=seed), geometry), source)
    super_resolve(Path("any"), source, target)
    coarse, fine = sitk.ReadImage(str(source)), sitk.ReadImage(str(target))
    columns, rows, slices = coarse.GetSize()
    assert fine.GetSize() == (SCALE * columns, SCALE * rows, slices)
    for index in rng.uniform((0, 0, 0), (columns - 1, rows - 1, slices - 1), (20, 3)):
        x, y, z = index.tolist()
        there = (SCALE * (x + 0.5) - 0.5, SCALE * (y + 0.5) - 0.5, z)
        points = (
            coarse.TransformContinuousIndexToPhysicalPoint((x, y, z)),
            fine.TransformContinuousIndexToPhysicalPoint(there),
        )
        assert distance_px(*points, fine) < 0.01


@pytest.mark.usefixtures("nearest")
@pytest.mark.parametrize(
    "axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)], ids=lambda axes: f"{axes}"
)
def test_a_structure_stays_where_it_is_whatever_the_slices_axis(
    axes: tuple[int, int, int], tmp_path: Path
) -> None:
    matrix = np.reshape(rotated((7, -12, 20)), (3, 3))[:, list(axes)]
    geometry = Geometry((0.7, 1.1, 2.3), (-150.0, 20.0, -700.0), tuple(matrix.ravel().tolist()))
    array = np.full((18, 20, 22), -900, np.int16)
    array[11, 7, 15] = 400
    write_volume(Volume(array, geometry), tmp_path / "scan.nrrd")
    super_resolve(Path("any"), tmp_path / "scan.nrrd", tmp_path / "fine.nrrd")
    coarse, fine = (sitk.ReadImage(str(tmp_path / f"{n}.nrrd")) for n in ("scan", "fine"))
    # The slices of the output are nearest to axial.
    assert abs(np.reshape(fine.GetDirection(), (3, 3))[2, 2]) > 0.9
    bright = np.argwhere(sitk.GetArrayFromImage(fine) > 0)
    assert len(bright) == SCALE**2
    centre = bright.mean(axis=0)[::-1].tolist()
    points = (
        coarse.TransformIndexToPhysicalPoint((15, 7, 11)),
        fine.TransformContinuousIndexToPhysicalPoint(centre),
    )
    assert distance_px(*points, fine) < 0.01


# ---- what the output holds --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(finished: FinishedRun) -> TrainedModel:
    return load_model(finished.workdir)


def test_the_command_writes_what_the_network_gives_for_whole_slices(
    finished: FinishedRun, model: TrainedModel, tmp_path: Path
) -> None:
    hu = chest((2, 140, 132))  # more than a tile
    write_volume(Volume(hu, OBLIQUE), tmp_path / "scan.nii.gz")
    target = tmp_path / "new folder" / "fine.mha"
    result = run(
        "mmsr_jax.super_resolve",
        f"--run={finished.workdir}",
        f"--input={tmp_path / 'scan.nii.gz'}",
        f"--output={target}",
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "CheckpointManager" not in result.stderr
    assert "2/2" in result.stderr  # of the progress bar
    assert f"{target}: {SCALE * 132} x {SCALE * 140} x 2" in result.stdout
    written = read_volume(target)
    assert written.array.dtype == np.int16
    np.testing.assert_array_equal(written.array, model.array(hu))
    for one, fine in zip(clinical_intensity(model.window_hu).normalise(hu), written.array):
        network = model.network
        whole = np.asarray(network.tail(network.trunk(one[None, :, :, None])))[0, :, :, 0]
        assert np.abs(to_hu(whole, model.window_hu) - fine).max() <= 0.51
    low, high = model.window_hu
    assert low <= written.array.min() < written.array.max() <= high


def test_a_dicom_folder(finished: FinishedRun, model: TrainedModel, tmp_path: Path) -> None:
    hu = chest()
    write_dicom(tmp_path / "scan", hu)
    fine = super_resolve(finished.workdir, tmp_path / "scan", tmp_path / "fine.nii.gz")
    np.testing.assert_array_equal(fine.array, model.array(hu))
    written = read_volume(tmp_path / "fine.nii.gz")
    np.testing.assert_array_equal(written.array, fine.array)
    np.testing.assert_allclose(written.geometry.origin_mm, fine.geometry.origin_mm, atol=1e-3)


@pytest.mark.usefixtures("nearest")
def test_one_file_of_a_dicom_folder_stands_for_all(tmp_path: Path) -> None:
    files = write_dicom(tmp_path / "scan", chest())
    fine = super_resolve(tmp_path, files[1], tmp_path / "fine.mha", series=UIDS["a"])
    assert fine.array.shape == (3, 160, 192)


def test_one_of_several_series(finished: FinishedRun, model: TrainedModel, tmp_path: Path) -> None:
    hu = chest()
    write_dicom(tmp_path / "scan", hu, series="a")
    write_dicom(tmp_path / "scan", hu[:, ::-1], series="b")
    target = tmp_path / "fine.nii.gz"
    fine = super_resolve(finished.workdir, tmp_path / "scan", target, series=UIDS["b"])
    np.testing.assert_array_equal(fine.array, model.array(hu[:, ::-1]))


def test_the_best_checkpoint(finished: FinishedRun, scan: Path, tmp_path: Path) -> None:
    outputs = [
        super_resolve(finished.workdir, scan, tmp_path / f"{which}.nrrd", checkpoint=which).array
        for which in ("last", "best")
    ]
    best = load_model(finished.workdir, "best").array(chest())
    np.testing.assert_array_equal(outputs[1], best)


def test_arrays_of_other_dtypes_and_bad_ones(model: TrainedModel) -> None:
    hu = chest((1, 13, 12))
    np.testing.assert_array_equal(model.array(hu.astype(np.float64)), model.array(hu))
    with pytest.raises(ValueError, match="shape"):
        model.array(hu[0])
    broken = hu.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        model.array(broken)


def test_an_existing_output_is_replaced_when_asked(
    finished: FinishedRun, scan: Path, empty: Path
) -> None:
    (empty / "fine.nrrd").write_text("old")
    super_resolve(finished.workdir, scan, empty / "fine.nrrd", overwrite=True)
    assert read_volume(empty / "fine.nrrd").array.shape == (3, 160, 192)
    names = sorted(path.name for path in empty.iterdir())
    assert names == ["fine.nrrd", "fine.nrrd.json", "fine_disagreement.nrrd"]


# ---- bad input --------------------------------------------------------------------------------


def refuses(run_directory: Path, scan: Path, output: Path, *parts: object, **options: str) -> None:
    """`super_resolve` gives one line with all the parts, and leaves the output's folder alone."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        super_resolve(run_directory, scan, output, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    assert sorted(output.parent.iterdir()) == before


def missing(folder: Path) -> tuple[Path, str]:
    return folder / "nowhere.nii.gz", "does not exist"


def unreadable(folder: Path) -> tuple[Path, str]:
    (folder / "text.nii.gz").write_text("no image")
    return folder / "text.nii.gz", "cannot be read"


def truncated(folder: Path) -> tuple[Path, str]:
    write_volume(Volume(chest(), OBLIQUE), folder / "cut.nii")
    data = (folder / "cut.nii").read_bytes()
    (folder / "cut.nii").write_bytes(data[:-100])
    return folder / "cut.nii", "truncated"


def several_series(folder: Path) -> tuple[Path, str]:
    for series in ("a", "b"):
        write_dicom(folder / "dicom", chest(), series=series)
    return folder / "dicom", "--series"


def missing_slice(folder: Path) -> tuple[Path, str]:
    write_dicom(folder / "dicom", chest((6, 12, 12)))[3].unlink()
    return folder / "dicom", "misses slices between"


def four_dimensional(folder: Path) -> tuple[Path, str]:
    one = sitk.GetImageFromArray(chest())
    sitk.WriteImage(sitk.JoinSeries([one, one]), str(folder / "4d.nii.gz"))
    return folder / "4d.nii.gz", "4-D"


def nan_voxels(folder: Path) -> tuple[Path, str]:
    array = chest().astype(np.float32)
    array[1, 2, 3:5] = np.nan
    write_volume(Volume(array, OBLIQUE), folder / "nan.nrrd")
    return folder / "nan.nrrd", "2 NaN"


def flat(folder: Path) -> tuple[Path, str]:
    sitk.WriteImage(sitk.GetImageFromArray(chest()[0]), str(folder / "flat.nii.gz"))
    return folder / "flat.nii.gz", "is a 2-D image; give a volume of slices"


def tiff(folder: Path) -> tuple[Path, str]:
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(folder / "stack.tif"))
    return folder / "stack.tif", "no spacing in mm; give --spacing=x,y,z in mm"


def not_hounsfield(folder: Path) -> tuple[Path, str]:
    write_volume(Volume(chest() + np.int16(1024), OBLIQUE), folder / "offset.mha")
    return folder / "offset.mha", "not in Hounsfield units"


@pytest.mark.parametrize(
    "bad",
    [
        missing,
        unreadable,
        truncated,
        several_series,
        missing_slice,
        four_dimensional,
        nan_voxels,
        flat,
        tiff,
        not_hounsfield,
    ],
)
def test_bad_scans(
    bad: Callable[[Path], tuple[Path, str]], finished: FinishedRun, tmp_path: Path, empty: Path
) -> None:
    scan, problem = bad(tmp_path)
    refuses(finished.workdir, scan, empty / "fine.nii.gz", scan, problem)


def test_an_unknown_series(finished: FinishedRun, scan: Path, tmp_path: Path, empty: Path) -> None:
    write_dicom(tmp_path / "dicom", chest())
    refuses(finished.workdir, scan, empty / "a.mha", scan, "leave --series=1.2.3", series="1.2.3")
    refuses(
        finished.workdir, tmp_path / "dicom", empty / "a.mha", "1.2.3", UIDS["a"], series="1.2.3"
    )


def test_outputs_that_cannot_be_written(finished: FinishedRun, scan: Path, empty: Path) -> None:
    for name in ("fine.png", "fine.dcm"):
        refuses(finished.workdir, scan, empty / name, empty / name, ".nii.gz, .nii, .mha, .nrrd")
    (empty / "fine.mha").write_text("dear")
    refuses(finished.workdir, scan, empty / "fine.mha", empty / "fine.mha", "--overwrite")
    assert (empty / "fine.mha").read_text() == "dear"
    (empty / "folder.mha").mkdir()
    refuses(finished.workdir, scan, empty / "folder.mha", "is a folder")
    below_a_file = empty / "fine.mha" / "fine.mha"
    with pytest.raises(UserError, match=r"cannot be written: .* is no folder"):
        super_resolve(empty / "no run", scan, below_a_file)


def edit_meta(run_directory: Path, change: Callable[[dict], None]) -> None:
    """Change what the newest checkpoint says of itself, so that no fingerprint sees it."""
    path = run_directory / "checkpoints" / NEWEST / "meta" / "metadata"
    meta = json.loads(path.read_text()) | {"fingerprints": {}}
    change(meta)
    path.write_text(json.dumps(meta))


def test_directories_that_hold_no_checkpoint(scan: Path, tmp_path: Path, empty: Path) -> None:
    output = empty / "fine.nii.gz"
    refuses(tmp_path / "no run", scan, output, tmp_path / "no run", "no run directory")
    (tmp_path / "new run" / "checkpoints").mkdir(parents=True)
    refuses(tmp_path / "new run", scan, output, tmp_path / "new run", "no checkpoint yet")


def test_checkpoints_that_do_not_fit(copied: Path, scan: Path, empty: Path) -> None:
    output = empty / "fine.nii.gz"
    newest = copied / "checkpoints" / NEWEST

    def widen(meta: dict) -> None:
        meta["config"]["networks"]["sr_channels"] = 6

    edit_meta(copied, widen)
    refuses(copied, scan, output, copied, f"checkpoint {NEWEST}", "another architecture")

    def deepen(meta: dict) -> None:
        meta["config"]["networks"] |= {"sr_channels": 4, "sr_blocks": 2}

    edit_meta(copied, deepen)
    refuses(copied, scan, output, copied, f"checkpoint {NEWEST}", "another architecture")

    def from_the_future(meta: dict) -> None:
        meta["config"]["networks"] |= {"sr_blocks": 1, "attention": True}

    edit_meta(copied, from_the_future)
    refuses(copied, scan, output, "'attention'")

    (newest / "meta" / "metadata").write_text("{")
    refuses(copied, scan, output, copied, f"checkpoint {NEWEST}")
    shutil.rmtree(newest / "meta")
    refuses(copied, scan, output, copied, f"checkpoint {NEWEST}")


def test_a_damaged_checkpoint(copied: Path, scan: Path, empty: Path) -> None:
    for path in (copied / "checkpoints" / NEWEST / "params").rglob("*"):
        if path.is_file() and "d" in path.parts:
            path.write_bytes(b"rubbish")
    refuses(copied, scan, empty / "fine.nii.gz", copied, f"checkpoint {NEWEST}", "damaged")


def test_errors_of_the_command_line(finished: FinishedRun, scan: Path, empty: Path) -> None:
    def error(*flags: str) -> str:
        return error_line(run("mmsr_jax.super_resolve", *flags))

    a_run, a_scan = f"--run={finished.workdir}", f"--input={scan}"
    an_output = f"--output={empty / 'fine.nii.gz'}"
    assert "--input" in error(a_run, an_output)
    assert error(a_run, "--input=", an_output).startswith("error: --input is missing")
    assert "--what" in error(a_run, a_scan, an_output, "--what=1").replace("'what'", "--what")
    assert "last|best" in error(a_run, a_scan, an_output, "--checkpoint=first")
    assert "three lengths" in error(a_run, a_scan, an_output, "--spacing=nan,1,1")
    assert "three lengths" in error(a_run, a_scan, an_output, "--spacing=-1,1,1")
    assert "number of GB" in error(a_run, a_scan, an_output, "--device-memory=inf")
    assert "'stray'" in error(a_run, a_scan, an_output, "stray")
    assert "does not exist" in error(a_run, "--input=nowhere.nii", an_output)
    assert "no run directory" in error(f"--run={empty}", a_scan, an_output)
    assert ".nii.gz" in error(a_run, a_scan, f"--output={empty / 'fine.jpg'}")
    assert not any(empty.iterdir())


# ---- several processes ------------------------------------------------------------------------


def test_processes_share_a_scan(finished: FinishedRun, tmp_path: Path) -> None:
    write_volume(Volume(chest((5, 20, 24)), OBLIQUE), tmp_path / "scan.nii.gz")
    flags = [f"--run={finished.workdir}", f"--input={tmp_path / 'scan.nii.gz'}", "--distributed"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(
            "mmsr_jax.super_resolve",
            *flags,
            f"--output={tmp_path / 'fine.nii'}",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        )
        for number in range(2)
    ]
    results = [finish(process) for process in processes]
    assert [result.returncode for result in results] == [0, 0], results
    assert ["fine.nii: 192 x 160 x 5" in result.stdout for result in results] == [True, False]
    expected = load_model(finished.workdir).array(chest((5, 20, 24)))
    assert np.abs(read_volume(tmp_path / "fine.nii").array - expected).max() <= 1
    report = json.loads((tmp_path / "fine.nii.json").read_text())
    assert report["machine"]["processes"] == 2
    assert report["machine"]["device_count"] == 4


def test_without_other_processes_there_is_one_line(finished: FinishedRun, scan: Path) -> None:
    flags = [f"--run={finished.workdir}", f"--input={scan}", f"--output={scan.parent / 'a.nii'}"]
    line = error_line(run("mmsr_jax.super_resolve", *flags, "--distributed"))
    assert "JAX cannot join other processes" in line
    assert "JAX_COORDINATOR_ADDRESS" in line


# ---- stopped ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_says_so_and_continues(
    number: signal.Signals, finished: FinishedRun, tmp_path: Path
) -> None:
    write_volume(Volume(chest((60, 96, 96)), OBLIQUE), tmp_path / "scan.nii")
    flags = [f"--run={finished.workdir}", f"--input={tmp_path / 'scan.nii'}"]
    flags.append(f"--output={tmp_path / 'fine.nii'}")
    process = start("mmsr_jax.super_resolve", *flags)
    ledger = tmp_path / ".unfinished-fine.nii" / "ledger-0.jsonl"
    deadline = time.monotonic() + 120
    while not (ledger.exists() and ledger.read_text().count("slice") > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    result = finish(process)
    assert result.returncode == 128 + number
    assert result.stderr.splitlines()[-1] == "stopped; the same command continues"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "fine.nii").exists()
    again = run("mmsr_jax.super_resolve", *flags)
    assert again.returncode == 0, again.stderr
    assert "slices of an earlier run are kept" in again.stderr
    expected = load_model(finished.workdir).array(chest((60, 96, 96)))
    assert np.abs(read_volume(tmp_path / "fine.nii").array - expected).max() <= 1


# ---- an exported model, without what trains ---------------------------------------------------

BLOCKED = (
    "flax optax orbax dm_pix tensorflow tensorflow_datasets ml_collections tensorboardX "
    "mmsr_jax.methods mmsr_jax.networks mmsr_jax.losses mmsr_jax.config mmsr_jax.checkpoints "
    "mmsr_jax.train mmsr_jax.train_state mmsr_jax.train_step mmsr_jax.evaluation"
)
WITHOUT_TRAINING = f"""
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        for blocked in {BLOCKED.split()}:
            if name == blocked or name.startswith(blocked + "."):
                raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Blocked())
runpy.run_module("mmsr_jax.super_resolve", run_name="__main__")
"""


def test_an_exported_model_gives_the_same_without_the_code_that_trained_it(
    finished: FinishedRun, scan: Path, tmp_path: Path
) -> None:
    exported = run("mmsr_jax.export", f"--run={finished.workdir}", f"--output={tmp_path}/m.mmsr")
    assert exported.returncode == 0, exported.stderr
    flags = [f"--model={tmp_path}/m.mmsr", f"--input={scan}", f"--output={tmp_path}/a.nii"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, *flags],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    expected = super_resolve(finished.workdir, scan, tmp_path / "b.nii").array
    difference = np.abs(read_volume(tmp_path / "a.nii").array - expected)
    assert difference.max() <= 1  # of rounding
    assert (difference > 0).mean() < 0.01
    models = [
        json.loads((tmp_path / f"{name}.nii.json").read_text())["models"] for name in ("a", "b")
    ]
    assert models[0] == models[1]
