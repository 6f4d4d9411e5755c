"""Real processes train together on this machine, as they would on a pod."""

import signal
import time
from pathlib import Path

import pytest
from commands import QUICK, FinishedRun, error_line, finish, run, small_demo, start_several
from training_runs import logged, wait_until

from mmsr_jax.checkpoints import load_meta

STEPS = 16
CHANGES = {
    "steps": STEPS,
    "batch_size": 8,
    "pool_size": 9,  # two a row: full after two steps
    "log_every": 1,
    "validate_every": STEPS,
    "checkpoint_every": 2,
}
UNIT = {"networks__unit_channels": 8, "networks__unit_blocks": 1, "pool_size": 0}


def flags(workdir: Path, dataset: Path, **changes: object) -> list[str]:
    return small_demo(workdir, **CHANGES | {"data__directory": dataset} | changes)


def unit_flags(workdir: Path, dataset: Path) -> list[str]:
    _, *rest = flags(workdir, dataset, **UNIT)
    return ["--config=configs/unit.py:demo", *rest]


def assert_same_curves(workdir: Path, expected: Path) -> None:
    """To rounding, which Adam and the networks multiply by about three a step."""
    for values, others in zip(logged(workdir), logged(expected), strict=True):
        step, group = others["step"], others["group"]
        assert values.keys() == others.keys()
        assert (values.pop("step"), values.pop("group")) == (step, group)
        tolerance = min(1e-6 * 4**step, 0.02)
        for name, value in values.items():
            assert value == pytest.approx(others[name], rel=tolerance, abs=tolerance), (
                f"{group} {name} of step {step}"
            )


@pytest.fixture(scope="module")
def dataset(finished: FinishedRun) -> Path:
    return finished.workdir / "phantom_dataset"


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with one device. Not to be changed."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    result = run("mmsr_jax.main", *flags(workdir, dataset), XLA_FLAGS=QUICK)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_number_of_devices_does_not_change_the_run(
    count: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    results = list(map(finish, start_several(count, *flags(tmp_path / "run", dataset))))
    assert [result.returncode for result in results] == [0] * count, results
    assert f"{2 * count} device(s)" in results[0].stdout
    assert f"of {count} process(es)" in results[0].stdout
    assert not any("training for" in result.stdout for result in results[1:])
    assert_same_curves(tmp_path / "run", alone)
    assert load_meta(tmp_path / "run")[0] == STEPS


def test_noise_is_that_of_the_example_not_of_the_device(dataset: Path, tmp_path: Path) -> None:
    """SR-UNIT draws some in every step."""
    result = run("mmsr_jax.main", *unit_flags(tmp_path / "one", dataset), XLA_FLAGS=QUICK)
    assert result.returncode == 0, result.stderr
    results = list(map(finish, start_several(2, *unit_flags(tmp_path / "two", dataset))))
    assert [result.returncode for result in results] == [0, 0], results
    assert_same_curves(tmp_path / "two", tmp_path / "one")


def test_a_signal_to_one_stops_all_at_one_step_and_fewer_devices_go_on(
    alone: Path, dataset: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    processes = start_several(2, *flags(workdir, dataset))
    wait_until(lambda: logged(workdir), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    results = list(map(finish, processes))
    assert [result.returncode for result in results] == [143, 143], results
    step, _ = load_meta(workdir)
    assert 0 < step < STEPS
    for result in results:
        assert f"stopped at step {step}; the same command resumes there" in result.stderr
    resumed = run("mmsr_jax.main", *flags(workdir, dataset), XLA_FLAGS=QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {step} of {STEPS}" in resumed.stdout
    assert_same_curves(workdir, alone)


@pytest.mark.parametrize("dying", [0, 1])
def test_one_of_two_dies_and_the_other_goes_on_alone(
    dying: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    processes = start_several(2, *flags(workdir, dataset))
    wait_until(lambda: logged(workdir), processes[0])
    processes[dying].kill()
    killed = time.monotonic()
    other = finish(processes[1 - dying], timeout_s=90)
    assert time.monotonic() - killed < 60
    assert other.returncode not in (0, 143)
    assert "another task died" in other.stderr or "tasks have crashed" in other.stderr
    finish(processes[dying])
    resumed = run("mmsr_jax.main", *flags(workdir, dataset), XLA_FLAGS=QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_curves(workdir, alone)


def test_an_error_of_one_is_reported_and_all_stop(dataset: Path, tmp_path: Path) -> None:
    """Only the first process looks at the run directory, which is another run's here."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    first, second = map(finish, start_several(2, *flags(tmp_path / "run", dataset)))
    assert [first.returncode, second.returncode] == [1, 1]
    assert "belongs to a run of another configuration" in first.stderr
    assert "error: another process has failed; see what it says" in second.stderr


def test_a_batch_that_does_not_divide_is_one_line(dataset: Path, tmp_path: Path) -> None:
    results = map(finish, start_several(2, *flags(tmp_path / "run", dataset, batch_size=6)))
    for result in results:
        assert result.returncode == 1
        assert "batch size 6 does not divide over 4 devices" in result.stderr
    assert not (tmp_path / "run").exists()


def test_variables_that_name_no_process(dataset: Path, tmp_path: Path) -> None:
    line = error_line(
        run("mmsr_jax.main", *flags(tmp_path / "run", dataset), JAX_COORDINATOR_ADDRESS="here:1")
    )
    assert "JAX_NUM_PROCESSES" in line
    assert "cannot join the other processes" in line
    assert not (tmp_path / "run").exists()
