"""Where JAX keeps what it compiles, and the fixtures of all that looks at a finished training."""

import os
import shutil
from pathlib import Path

import pytest

# Most of the tests' time is compiling, which the next run of the tests, and the commands that they
# start, read back from here. JAX reads these variables once, when it is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from commands import FinishedRun, run, small_demo
from scan_files import OBLIQUE
from scans import noise

from data_pipelines.geometry import Volume
from data_pipelines.volumes import write_volume


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The shrunk demo, run from its command line without a stop. Not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run("mmsr_jax.main", *small_demo(workdir))
    assert result.returncode == 0, result.stderr
    return FinishedRun(workdir, result)


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run's directory."""
    return shutil.copytree(finished.workdir, tmp_path / "copied")


@pytest.fixture
def workdir(finished: FinishedRun, tmp_path: Path) -> Path:
    """A run directory that holds nothing but the finished run's dataset."""
    shutil.copytree(finished.workdir / "phantom_dataset", tmp_path / "run" / "phantom_dataset")
    return tmp_path / "run"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small scan in a file."""
    write_volume(Volume(noise(), OBLIQUE), tmp_path / "scan.nrrd")
    return tmp_path / "scan.nrrd"
