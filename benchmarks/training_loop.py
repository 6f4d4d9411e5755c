"""Command line: what the input pipeline and the rest of the training loop cost beside the step.

    python -m benchmarks.training_loop --config=configs/cyclegan.py --batch_sizes=1,4 --runs=6

Any field of the configuration can be overridden, as in `mmsr_jax.main`. The step alone is given one
random batch again and again, half of its runs before and half after the loop; the loop is
`mmsr_jax.train.train` itself with its logging, by the figures that it logs; the input pipeline
alone makes batches that nothing uses (none of its own with `data.residency=device`).
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks.device import Device
from benchmarks.report import progress, table, write_report
from data_pipelines.errors import reported_in_one_line
from mmsr_jax.compilation_cache import enable_compilation_cache
from mmsr_jax.config import Config
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags
from mmsr_jax.host_memory import keep_host_memory

_CONFIG = define_config()
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "4"], "Pairs of patches in a step.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps in a run.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 6, "Repetitions that count.", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", "training_loop.json", "JSON file to write.")

_PACKAGES = ("mmsr-jax", "jax", "jaxlib", "tensorflow-cpu", "numpy")
_STEP, _LOOP, _PIPELINE = "step alone", "training loop", "input pipeline alone"

Speeds = dict[str, list[float]]  # pairs a second of every run


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        chosen = chosen_config(_CONFIG, argv)
        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
        keep_host_memory()
        enable_compilation_cache()
        results = {int(text): _measure(_config(chosen, int(text))) for text in _BATCH_SIZES.value}
        report = {"steps": _STEPS.value, "load_average": os.getloadavg(), "results": results}
        device: Device = "cpu" if jax.default_backend() == "cpu" else "gpu"
        write_report(_OUTPUT.value, "benchmarks.training_loop", device, _PACKAGES, report)
        print(table(("", "batch", "pairs/s", "±", "of the step alone"), list(_rows(results))))


def _config(chosen: Config, batch_size: int) -> Config:
    """A run of which every interval of logging is one of ours, the first left out."""
    steps = _STEPS.value * (_RUNS.value + 1)
    return dataclasses.replace(
        chosen,
        batch_size=batch_size,
        steps=steps,
        log_every=_STEPS.value,
        validate_every=steps,
        checkpoint_every=steps,
    )


def _measure(config: Config) -> Speeds:
    step_alone = _step_alone(config)
    half = _RUNS.value // 2
    before = [_pairs_per_second(config, step_alone) for _ in range(half)]
    with tempfile.TemporaryDirectory() as workdir:
        loop, dataset = _loop(config, Path(workdir))
        after = [_pairs_per_second(config, step_alone) for _ in range(_RUNS.value - half)]
        speeds = {_STEP: before + after, _LOOP: loop}
        if config.data.residency == "host":
            pipeline = _pipeline_alone(config, dataset)
            speeds[_PIPELINE] = [_pairs_per_second(config, pipeline) for _ in range(_RUNS.value)]
    for name, values in speeds.items():
        progress(f"batch {config.batch_size}, {name}: {values}")
    return speeds


def _pairs_per_second(config: Config, run: Callable[[int], None]) -> float:
    start = time.perf_counter()
    run(_STEPS.value)
    return _STEPS.value * config.batch_size / (time.perf_counter() - start)


def _step_alone(config: Config) -> Callable[[int], None]:
    """Trains for some steps; compiled."""
    from mmsr_jax import methods
    from mmsr_jax.mesh import data_mesh, replicated, split_batch
    from mmsr_jax.train_state import batch_shapes, create_train_state
    from mmsr_jax.train_step import make_train_step

    method, mesh = methods.create(config), data_mesh()
    train_step = make_train_step(config, method, mesh)
    state = jax.device_put(create_train_state(config, method), replicated(mesh))
    batch = {
        domain: jax.random.uniform(jax.random.key(0), shape.shape, minval=-1.0)
        for domain, shape in batch_shapes(config, config.batch_size).items()
    }
    batch = jax.device_put(batch, split_batch(mesh))

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, done = train_step(state, batch)
        done.block_until_ready()

    run(2)
    return run


def _loop(config: Config, workdir: Path) -> tuple[list[float], Path]:
    """What a run of training logs, and its dataset's directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mmsr_jax.train import train

    dataset = train(config, workdir)
    board = EventAccumulator(str(workdir / "tensorboard"))
    board.Reload()
    events = board.Scalars("speed/patch_pairs_per_second")
    return [event.value for event in events[1:]], dataset


def _pipeline_alone(config: Config, dataset: Path) -> Callable[[int], None]:
    """Makes some batches."""
    from data_pipelines.batches import train_batches

    batches = train_batches(
        dataset, batch_size=config.batch_size, seed=config.seed, augment=config.data.augment
    )

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(next(batches))

    run(2 * _STEPS.value)
    return run


def _rows(results: dict[int, Speeds]) -> Iterator[tuple[str, ...]]:
    for batch_size, speeds in results.items():
        step = statistics.median(speeds[_STEP])
        for name, values in speeds.items():
            median = statistics.median(values)
            spread = (max(values) - min(values)) / 2
            yield name, str(batch_size), f"{median:.4g}", f"{spread:.2g}", f"{median / step:.1%}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
