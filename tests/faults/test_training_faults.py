"""What goes wrong while training, for real: the run ends as if nothing had been, or says why."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    SMALL,
    FinishedRun,
    error_line,
    finish,
    run,
    small_demo,
    start,
)
from training_runs import (
    assert_identical_runs,
    assert_same_results,
    kept_checkpoints,
    last_logged_step,
    wait_until,
)

from mmsr_jax.checkpoints import load_meta

STEPS = SMALL["steps"]
needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


@needs_mount
def test_a_full_disk_is_reported_and_training_goes_on(
    finished: FinishedRun, small_disk: Path
) -> None:
    workdir = small_disk / "run"
    shutil.copytree(finished.workdir / "phantom_dataset", workdir / "phantom_dataset")
    process = start("mmsr_jax.main", *small_demo(workdir))
    wait_until(lambda: len(kept_checkpoints(workdir)) > 1, process)
    ballast = fill(small_disk)
    time.sleep(5)  # a save fails, and is tried again after 2 and 10 s
    assert process.poll() is None
    ballast.unlink()
    result = finish(process)
    assert result.returncode == 0, result.stderr
    assert "could not be saved in" in result.stdout
    assert "training goes on" in result.stdout
    assert_same_results(workdir, finished.workdir)  # a checkpoint on the way may be missing


@needs_mount
def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(
    finished: FinishedRun, small_disk: Path
) -> None:
    workdir = small_disk / "run"
    shutil.copytree(finished.workdir / "phantom_dataset", workdir / "phantom_dataset")
    process = start("mmsr_jax.main", *small_demo(workdir))
    wait_until(lambda: len(kept_checkpoints(workdir)) > 1, process)
    ballast = fill(small_disk)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "cannot be saved" in line
    assert "the same command goes on" in line
    ballast.unlink()
    step, _ = load_meta(workdir)
    resumed = run("mmsr_jax.main", *small_demo(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {step} of" in resumed.stdout
    assert_identical_runs(workdir, finished.workdir)


@needs_mount
def test_a_run_directory_that_cannot_be_written(finished: FinishedRun, small_disk: Path) -> None:
    flags = small_demo(small_disk / "run", data__directory=finished.workdir / "phantom_dataset")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in error_line(run("mmsr_jax.main", *flags))


def test_two_trainings_of_one_directory(finished: FinishedRun, workdir: Path) -> None:
    first = start("mmsr_jax.main", *small_demo(workdir))
    wait_until(lambda: last_logged_step(workdir), first)
    line = error_line(run("mmsr_jax.main", *small_demo(workdir)))
    assert f"{workdir} is in use by another training" in line
    result = finish(first)
    assert result.returncode == 0, result.stderr
    assert_identical_runs(workdir, finished.workdir)


def truncate(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("params/**/d/*"), key=os.path.getsize)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_bit(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("params/**/d/*"), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1 << random.randrange(8)
    largest.write_bytes(bytes(content))


def remove_a_file(checkpoint: Path) -> None:
    max(checkpoint.glob("rest/**/d/*"), key=os.path.getsize).unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_file])
def test_a_damaged_newest_checkpoint(damage: object, finished: FinishedRun, copied: Path) -> None:
    before = sorted(int(name) for name in kept_checkpoints(copied))[-2]
    damage(copied / "checkpoints" / str(STEPS))  # type: ignore[operator]
    resumed = run("mmsr_jax.main", *small_demo(copied))
    assert resumed.returncode == 0, resumed.stderr
    assert f"WARNING: checkpoint {STEPS} of" in resumed.stdout
    assert "going on from the one before" in resumed.stdout
    assert f"resuming at step {before} of {STEPS}" in resumed.stdout
    shutil.rmtree(copied / "checkpoints" / f"damaged-{STEPS}")
    assert_identical_runs(copied, finished.workdir)


def test_no_checkpoint_that_can_be_read(copied: Path) -> None:
    for name in kept_checkpoints(copied):
        truncate(copied / "checkpoints" / name)
    before = kept_checkpoints(copied)
    line = error_line(run("mmsr_jax.main", *small_demo(copied)))
    assert f"checkpoint {STEPS} of" in line
    assert "use another run directory" in line
    assert kept_checkpoints(copied) == before


@pytest.mark.parametrize("domain", ["clinical", "micro"])
def test_a_bit_of_a_shard(domain: str, workdir: Path) -> None:
    (shard,) = workdir.glob(f"phantom_dataset/**/{domain}/**/*-train.tfrecord-00000-of-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(bytes(content))
    result = run("mmsr_jax.main", *small_demo(workdir))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.splitlines()
    assert f"has a damaged {domain} record" in line
    assert "prepare the dataset again" in line


def test_a_clock_that_jumps(
    finished: FinishedRun, workdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By hours, forth and back, every few seconds: saves that see it are tried again."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "real, jumps = time.time, [0, 7200, -86400, 3600]\n"
        "time.time = lambda: real() + jumps[int(time.monotonic() / 3) % 4]\n"
    )
    result = run("mmsr_jax.main", *small_demo(workdir), PYTHONPATH=str(folder))
    assert result.returncode == 0, result.stderr
    assert_identical_runs(workdir, finished.workdir)
