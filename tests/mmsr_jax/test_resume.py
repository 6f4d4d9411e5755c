"""A run that was stopped, however it was, ends exactly like one that never was."""

import dataclasses
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import QUICK, SMALL, FinishedRun, finish, run, small_config, small_demo, start
from training_runs import assert_identical_runs, final_state, last_logged_step, logged, wait_until

from data_pipelines.errors import UserError
from mmsr_jax import methods
from mmsr_jax.checkpoints import CheckpointMeta, Checkpoints, TrainedOn, load_meta
from mmsr_jax.inference.trained import load_model
from mmsr_jax.mesh import data_mesh
from mmsr_jax.train_state import create_train_state, state_sharding

STEPS = SMALL["steps"]


def saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def wait_a_moment() -> None:
    delay_s = random.uniform(0, 1)
    print(f"{delay_s=}")
    time.sleep(delay_s)


def test_sigterm_saves_and_the_same_command_ends_bit_identical(
    finished: FinishedRun, workdir: Path
) -> None:
    process = start("mmsr_jax.main", *small_demo(workdir))
    wait_until(lambda: last_logged_step(workdir), process)
    wait_a_moment()
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    stopped = finish(process)
    assert time.monotonic() - asked < 15
    assert stopped.returncode == 143
    assert "Traceback" not in stopped.stderr
    step, _ = load_meta(workdir)
    assert 0 < step < STEPS
    line = stopped.stderr.splitlines()[-1]
    assert line == f"stopped at step {step}; the same command resumes there"

    resumed = run("mmsr_jax.main", *small_demo(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {step} of {STEPS}" in resumed.stdout
    assert_identical_runs(workdir, finished.workdir)


def test_sigkill_again_and_again_ends_bit_identical(finished: FinishedRun, workdir: Path) -> None:
    for while_saving in (False, True, True):
        process = start("mmsr_jax.main", *small_demo(workdir))
        before = last_logged_step(workdir)
        if while_saving:
            wait_until(lambda: last_logged_step(workdir) > before, process)  # noqa: B023
            wait_until(lambda: saving(workdir), process)
            print(f"killed while saving, after step {last_logged_step(workdir)}")
        else:
            wait_until(lambda: last_logged_step(workdir), process)
            wait_a_moment()
        process.kill()
        assert finish(process).returncode == -signal.SIGKILL
    resumed = run("mmsr_jax.main", *small_demo(workdir))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stdout
    assert_identical_runs(workdir, finished.workdir)


# With three steps a dispatch, on patches in the device's memory. Compiles in half the time.
DISPATCHED = {
    "steps": 24,
    "steps_per_dispatch": 3,
    "validate_every": 12,
    "checkpoint_every": 6,
    "data__residency": "device",
}


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that cannot import TensorFlow."""
    folder = tmp_path_factory.mktemp("without")
    blocked = "import sys\nsys.modules |= {'tensorflow': None, 'tensorflow_datasets': None}\n"
    (folder / "sitecustomize.py").write_text(blocked)
    return {"PYTHONPATH": str(folder), "XLA_FLAGS": QUICK}


@pytest.fixture(scope="module")
def dispatched(
    finished: FinishedRun,
    without_tensorflow: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> FinishedRun:
    """A run on the finished run's dataset, without TensorFlow. Not to be changed."""
    workdir = tmp_path_factory.mktemp("dispatched") / "run"
    result = run("mmsr_jax.main", *dispatched_demo(workdir, finished), **without_tensorflow)
    assert result.returncode == 0, result.stderr
    return FinishedRun(workdir, result)


def dispatched_demo(workdir: Path, finished: FinishedRun) -> list[str]:
    dataset = finished.workdir / "phantom_dataset"
    return small_demo(workdir, data__directory=dataset, **DISPATCHED)


def test_resident_patches_need_no_tensorflow(dispatched: FinishedRun) -> None:
    """From the first step to the super-resolved scan."""
    steps, *_ = DISPATCHED.values()
    found = [(line["group"], line["step"]) for line in logged(dispatched.workdir)]
    assert [step for group, step in found if group == "train"] == list(range(3, steps + 1, 3))
    assert [step for group, step in found if group == "validation"] == [12, 24]
    assert load_meta(dispatched.workdir)[0] == steps
    assert f"{steps}/{steps}" in dispatched.result.stderr
    assert f"ms a step: all {steps} steps take about" in dispatched.result.stdout
    for name in ("report.html", "super_resolved.nii.gz"):
        assert (dispatched.workdir / name).exists()


def test_a_dataset_is_only_made_with_tensorflow(
    without_tensorflow: dict[str, str], tmp_path: Path
) -> None:
    """What the two tests around this one rely on: there is none in their processes."""
    failed = run("mmsr_jax.main", *small_demo(tmp_path / "run"), **without_tensorflow)
    assert failed.returncode != 0
    assert "import of tensorflow" in failed.stderr


def test_a_stop_between_dispatches_ends_bit_identical(
    finished: FinishedRun,
    dispatched: FinishedRun,
    without_tensorflow: dict[str, str],
    tmp_path: Path,
) -> None:
    flags = dispatched_demo(tmp_path / "run", finished)
    process = start("mmsr_jax.main", *flags, **without_tensorflow)
    wait_until(lambda: last_logged_step(tmp_path / "run"), process)
    process.send_signal(signal.SIGTERM)
    stopped = finish(process)
    assert stopped.returncode == 143
    step, _ = load_meta(tmp_path / "run")
    assert 0 < step < DISPATCHED["steps"]
    assert step % 3 == 0
    resumed = run("mmsr_jax.main", *flags, **without_tensorflow)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {step} of" in resumed.stdout
    assert_identical_runs(tmp_path / "run", dispatched.workdir)


def test_a_checkpoint_of_one_device_goes_on_with_two(finished: FinishedRun, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints" / str(STEPS))
    start_step, _ = load_meta(copied)
    resumed = run(
        "mmsr_jax.main",
        *small_demo(copied),
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "2 device(s)" in resumed.stdout
    assert f"resuming at step {start_step} of {STEPS}" in resumed.stdout
    for line, expected in zip(logged(copied), logged(finished.workdir), strict=True):
        assert line == expected or expected["step"] > start_step
        assert line.keys() == expected.keys()
        numbers, wanted = (
            [value for value in values.values() if isinstance(value, float)]
            for values in (line, expected)
        )
        # The order of summation is another one.
        np.testing.assert_allclose(numbers, wanted, rtol=0.01, atol=0.001)
    assert final_state(copied).step == STEPS


DATASET = TrainedOn(scale=8, window_hu=(-1000.0, 400.0), micro_anchors=[])


def test_a_state_without_pools_is_saved(tmp_path: Path) -> None:
    config = small_config(pool_size=0)
    state = create_train_state(config, methods.create(config))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    try:
        checkpoints.save(3, state, CheckpointMeta(dataclasses.asdict(config), DATASET))
        checkpoints.wait()
        like = jax.eval_shape(lambda: state)
        again = checkpoints.restore(like, state_sharding(like, data_mesh()))
    finally:
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, again, (3, state))


def test_a_checkpoint_with_truncated_arrays(copied: Path) -> None:
    params = copied / "checkpoints" / str(STEPS) / "params"
    largest = max((file for file in params.rglob("*") if file.is_file()), key=os.path.getsize)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(UserError, match=f"checkpoint {STEPS} of .* damaged") as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)
