"""Run directories of trainings that are watched, stopped and compared."""

import json
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mmsr_jax import methods
from mmsr_jax.checkpoints import Checkpoints, load_meta
from mmsr_jax.mesh import data_mesh
from mmsr_jax.train_state import TrainState, create_train_state, state_sharding

EVALUATION = "evaluation.json"


def logged(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_logged_step(workdir: Path) -> int:
    return max((line["step"] for line in logged(workdir)), default=0)


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def final_state(workdir: Path) -> TrainState:
    """Everything in the newest checkpoint."""
    step, meta = load_meta(workdir)
    config = meta.typed_config()
    assert step == config.steps
    like = jax.eval_shape(partial(create_train_state, config, methods.create(config)))
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        found = checkpoints.restore(like, state_sharding(like, data_mesh()))
        assert found
        assert found[0] == step
        return found[1]
    finally:
        checkpoints.close()


def kept_checkpoints(workdir: Path) -> set[str]:
    return {entry.name for entry in workdir.glob("checkpoints/*")}


def assert_same_results(workdir: Path, expected: Path) -> None:
    """Curves, final state and evaluation, bit for bit."""
    assert (workdir / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    state, wanted = (
        jax.tree_util.tree_leaves_with_path(final_state(path)) for path in (workdir, expected)
    )
    for (where, leaf), (_, other) in zip(state, wanted, strict=True):
        assert leaf.dtype == other.dtype
        assert np.array_equal(leaf, other), jax.tree_util.keystr(where)
    assert (workdir / EVALUATION).read_bytes() == (expected / EVALUATION).read_bytes()


def assert_identical_runs(workdir: Path, expected: Path) -> None:
    """The same results, and checkpoints of the same steps."""
    assert_same_results(workdir, expected)
    assert kept_checkpoints(workdir) == kept_checkpoints(expected)
