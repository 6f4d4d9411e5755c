"""What training says of its speed, and that nothing is compiled twice."""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import FinishedRun, run, small_config, small_demo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsr_jax import methods
from mmsr_jax.compilation_cache import enable_compilation_cache
from mmsr_jax.mesh import data_mesh
from mmsr_jax.networks.convolution import convolve
from mmsr_jax.speed import Speed, measured_peak_flops, model_flops
from mmsr_jax.train import train
from mmsr_jax.train_state import batch_shapes, create_train_state
from mmsr_jax.train_step import make_train_step


def counted(function, *shapes: tuple[int, ...]) -> float:
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return model_flops(jax.jit(function).trace(*inputs).jaxpr)


@pytest.mark.parametrize(
    ("size", "stride", "channels"), [(3, 1, (64, 80)), (4, 2, (64, 64)), (3, 1, (6, 5))]
)
def test_flops_of_a_convolution(size: int, stride: int, channels: tuple[int, int]) -> None:
    images, kernel = (2, 40, 34, channels[0]), (size, size, *channels)
    height, width = ((side - size) // stride + 1 for side in images[1:3])
    forward = 2 * 2 * height * width * size**2 * channels[0] * channels[1]
    assert counted(partial(convolve, stride=stride), images, kernel) == forward

    def by_kernel(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.grad(lambda kernel: jnp.sum(convolve(images, kernel, stride) ** 2))(kernel)

    assert counted(by_kernel, images, kernel) == 2 * forward  # the unused gradient is none


def test_flops_in_loops_and_products() -> None:
    def repeated(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 5, lambda _, c: jax.nn.relu(c @ b), a)

    assert counted(repeated, (3, 7), (7, 7)) == 5 * 2 * 3 * 7 * 7


def test_flops_of_a_step_grow_with_the_batch() -> None:
    def flops(batch_size: int) -> float:
        config = small_config(batch_size=batch_size)
        method = methods.create(config)
        state = jax.eval_shape(partial(create_train_state, config, method))
        step = make_train_step(config, method, data_mesh(jax.devices()[:1]))
        return model_flops(step.trace(state, batch_shapes(config, batch_size)).jaxpr)

    assert flops(4) == pytest.approx(2 * flops(2), rel=0.02)


def test_speed_counts_steps_between_pauses() -> None:
    speed = Speed(batch_size=4, flops_a_step=1e9, peak_flops=1e12)
    done = jnp.zeros(())
    for _ in range(2):
        speed.start()
        speed.advance(3)
        time.sleep(0.2)
        speed.pause(done)
        time.sleep(0.3)  # a validation
    values = speed.scalars()
    pairs = values["patch_pairs_per_second"]
    assert 24 / 0.8 < pairs <= 24 / 0.4
    assert values["model_flops_utilization"] == pytest.approx(pairs / 4 * 1e9 / 1e12)
    assert speed.scalars() == {}


def test_the_measured_peak_is_a_rate_of_this_machine() -> None:
    a = np.ones((512, 512), np.float32)
    start = time.perf_counter()
    a @ a
    numpy_flops = 2 * 512**3 / (time.perf_counter() - start)
    peak = measured_peak_flops("float32", 1)
    assert 0.02 * numpy_flops < peak < 50 * numpy_flops
    assert measured_peak_flops("float32", 4) > 1.5 * peak


def test_a_run_shows_and_logs_its_speed(finished: FinishedRun) -> None:
    assert "pairs/s=" in finished.result.stderr
    assert "MFU=" in finished.result.stderr
    board = EventAccumulator(str(finished.workdir / "tensorboard"))
    board.Reload()
    for name in ("patch_pairs_per_second", "model_flops_utilization"):
        values = [event.value for event in board.Scalars(f"speed/{name}")]
        assert len(values) > 5
        assert all(0 < value < 1e6 for value in values)


def test_a_profile_is_written(workdir: Path) -> None:
    result = run(
        "mmsr_jax.main", *small_demo(workdir, steps=12, evaluation_phantoms=1), "--profile"
    )
    assert result.returncode == 0, result.stderr
    traces = [path for path in (workdir / "profile").rglob("*") if path.is_file()]
    assert {".pb", ".gz"} <= {path.suffix for path in traces}  # of TensorBoard and of Perfetto
    assert all(path.stat().st_size > 1000 for path in traces)


@pytest.mark.parametrize("residency", ["host", "device"])
def test_nothing_is_compiled_later(workdir: Path, residency: str) -> None:
    """In a run with several validations and checkpoints: before its first validation is logged."""
    config = small_config(steps=32, validate_every=8, checkpoint_every=4, data__residency=residency)
    compiled: list[tuple[object, int]] = []

    def note(event: str, _: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            log = workdir / "metrics.jsonl"
            validations = log.read_text().count('"validation"') if log.exists() else 0
            compiled.append((details.get("fun_name"), validations))

    enable_compilation_cache()
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        train(config, workdir)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert (workdir / "metrics.jsonl").read_text().count('"validation"') == 4
    assert [name for name, validations in compiled if validations] == []
    steps = [name for name, _ in compiled if "train_step" in str(name)]
    assert len(steps) == 1
