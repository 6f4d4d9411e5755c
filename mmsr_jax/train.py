"""Training from configuration to checkpoints; exact to resume."""

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines import dataset_card
from data_pipelines.dataset_card import DatasetCard
from data_pipelines.errors import UserError
from data_pipelines.patches import validation_patches
from data_pipelines.phantom_dataset import prepare_phantom
from data_pipelines.resident import load_resident
from data_pipelines.typed_json import from_json
from mmsr_jax import methods
from mmsr_jax.buckets import place_of_checkpoints
from mmsr_jax.checkpoints import (
    Anchors,
    CheckpointMeta,
    Checkpoints,
    TrainedOn,
    directory_of,
    keep_elsewhere,
)
from mmsr_jax.config import Config, check_config, config_from_dict, differing_fields
from mmsr_jax.mesh import data_mesh, replicated, split_batch
from mmsr_jax.methods import Images, Method, Params
from mmsr_jax.processes import is_first, step_of_all
from mmsr_jax.run_log import NoLog, RunLog
from mmsr_jax.speed import Speed, measured_peak_flops, model_flops
from mmsr_jax.train_state import (
    TrainState,
    batch_shapes,
    create_train_state,
    state_sharding,
)
from mmsr_jax.train_step import make_resident_train_steps, make_train_step
from mmsr_jax.validation import Arrays, collapse, panel, validate

# Some steps of training: (state) → (state, the last step's number, to wait for).
Dispatch = Callable[[TrainState], tuple[TrainState, jax.Array]]

# Steps handed to the device before the host waits for the oldest: enough to hide the host's work,
# few enough that a signal is answered within seconds.
_STEPS_IN_FLIGHT = 4
_STEPS_BEFORE_ESTIMATE = 20


class Interrupted(Exception):
    """Training was asked to stop; everything up to `step` is saved."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step}; the same command resumes there")
        self.signal = signal_number


def train(
    config: Config, workdir: Path, *, checkpoints_in: str | None = None, profile: bool = False
) -> Path:
    """Train as configured, or resume what `workdir` holds; returns the dataset's directory.

    Several processes that have joined (`mmsr_jax.processes`) train together; the first one writes
    `workdir`.

    Args:
      config: see `mmsr_jax.config`.
      workdir: run directory: configuration, checkpoints, logs.
      checkpoints_in: another place for the checkpoints, as gs://BUCKET/NAME. All processes must see
        it, or `workdir` if it is None.
      profile: write a trace of a few steps to `workdir`/profile, for TensorBoard or Perfetto.

    Raises:
      data_pipelines.errors.UserError: bad configuration or dataset, a run directory of another
        configuration or in use, a bucket that cannot be used, a non-finite loss, a last checkpoint
        that cannot be saved.
      Interrupted: SIGTERM or SIGINT came, to any process; the state is saved.
    """
    check_config(config)
    if checkpoints_in:
        place_of_checkpoints(checkpoints_in)
    method, mesh = methods.create(config), data_mesh()
    if config.batch_size % mesh.size:
        raise UserError(
            f"batch size {config.batch_size} does not divide over {mesh.size} devices; use a "
            "multiple of the number of devices"
        )
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as claim:
            with step_of_all():
                if is_first():
                    stack.enter_context(_only_one(workdir))
                    claim.enter_context(_claimed(workdir, config, checkpoints_in))
                    _dataset(config, workdir)
            with step_of_all():
                dataset, card = _dataset(config, workdir)
                checkpoints = Checkpoints(checkpoints_in or directory_of(workdir))
                start, state = _first_state(config, method, checkpoints, mesh)
                dispatch, flops = _dispatch(config, method, mesh, dataset, start, state)
                patches = validation_patches(dataset, config.data.validation_patches)
        log = _log(workdir, start, config.steps, checkpoints)
        stack.callback(log.close)
        stack.callback(checkpoints.close)
        peak_flops = measured_peak_flops(config.compute_dtype, mesh.size)
        run = _Run(
            config,
            checkpoints,
            log,
            _meta(config, card),
            patches,
            jax.jit(method.translate),
            Speed(config.batch_size, flops, peak_flops),
            _Profile(workdir / "profile" if profile and is_first() else None),
        )
        stack.callback(run.profile.stop)
        _announce(config, state, start, workdir)
        run.steps(dispatch, state, start)
    return dataset


@dataclasses.dataclass
class _Run:
    """What the loop needs beside the state."""

    config: Config
    checkpoints: Checkpoints
    log: RunLog
    meta: CheckpointMeta
    patches: Arrays
    translate: Callable[[Params, Images], Images]
    speed: Speed
    profile: "_Profile"

    def steps(self, dispatch: Dispatch, state: TrainState, start: int) -> None:
        """Train from step `start` to the last; log, validate and save at their intervals."""
        config, more = self.config, self.config.steps_per_dispatch
        estimate = _Estimate(config.steps, more)
        pauses = (config.log_every, config.validate_every, config.checkpoint_every)
        in_flight: collections.deque[jax.Array] = collections.deque()
        with _StopSignal() as stop:
            for step in range(start + more, config.steps + 1, more):
                warm = step > start + more  # the first dispatch compiles
                if warm:
                    self.speed.start()
                self.profile.before((step - start) // more)
                state, done = dispatch(state)
                self.profile.after((step - start) // more, done)
                self.speed.advance(more if warm else 0)
                in_flight.append(done)
                if len(in_flight) > max(1, _STEPS_IN_FLIGHT // more):
                    in_flight.popleft().block_until_ready()
                self.log.advance(more)
                estimate.after(done, self.log)
                last, stopping = step == config.steps, stop.reached(step)
                if last or stopping or not all(step % every for every in pauses):
                    self.speed.pause(done)
                if step % config.log_every == 0:
                    self.log.speed(step, self.speed.scalars())
                    state = self.log_means(step, state)
                score = None
                if step % config.validate_every == 0 or last:
                    score = self.validate(step, state)
                if score is not None or step % config.checkpoint_every == 0 or stopping:
                    _check_finite(state, step, config.log_every)
                    _check_finite_parameters(state, step)
                    self.checkpoints.save(step, state, self.meta, score, wait=last or stopping)
                    self.log.keep_copy()
                if stopping and not last:
                    raise Interrupted(step, stop.requested)

    def log_means(self, step: int, state: TrainState) -> TrainState:
        """Log the means over the interval; the one moment when metrics reach the host."""
        _check_finite(state, step, self.config.log_every)
        sums = jax.device_get(state.metric_sums)
        means = {name: float(total) / self.config.log_every for name, total in sums.items()}
        self.log.scalars(step, "train", means)
        return state._replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))

    def validate(self, step: int, state: TrainState) -> float:
        """Log metrics and pictures of the validation patches; the score of this state."""
        scale = self.config.data.scale
        # Every process does the same on one of its devices.
        params = jax.tree.map(lambda leaf: leaf.addressable_data(0), state.params)
        values, translated = validate(
            lambda batch: self.translate(params, batch), self.patches, scale
        )
        self.log.scalars(step, "validation", values)
        self.log.image(step, "translations", panel(self.patches, translated, scale))
        problem = collapse(values)
        if problem and self.config.stop_on_collapse:
            raise UserError(
                f"step {step}: super-resolution is {problem}; lower the learning rate or raise "
                "loss.lambda_1 (config.stop_on_collapse=false goes on)"
            )
        if problem:
            self.log.message(f"WARNING: step {step}: super-resolution is {problem}")
        return values["score"]


class _StopSignal:
    """Notes SIGTERM and SIGINT, so that the loop can save before it stops.

    Of several processes any may get the signal: JAX's runtime takes SIGTERM and agrees on a step.
    """

    requested = 0  # the signal's number

    def __enter__(self) -> "_StopSignal":
        numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGTERM, signal.SIGINT]
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which JAX's runtime has taken

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step, which all processes ask of every dispatch."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = self.requested or signal.SIGTERM
            return True
        return jax.process_count() == 1 and self.requested > 0


class _Profile:
    """Traces a few dispatches, after those that compile and warm up."""

    _FIRST, _LAST = 6, 10

    def __init__(self, directory: Path | None):
        self._directory, self._tracing = directory, False

    def before(self, dispatch: int) -> None:
        """Start with the first of them."""
        if self._directory and dispatch == self._FIRST:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def after(self, dispatch: int, done: jax.Array) -> None:
        """Stop when the last of them is done."""
        if self._tracing and dispatch == self._LAST:
            done.block_until_ready()
            self.stop()

    def stop(self) -> None:
        """Write the trace, if there is one."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


class _Estimate:
    """Prints, once, how long the whole run will take by the pace of its first steps."""

    def __init__(self, steps: int, steps_per_dispatch: int):
        self._steps, self._more, self._dispatches, self._started = steps, steps_per_dispatch, 0, 0.0
        self._last = 1 + -(-_STEPS_BEFORE_ESTIMATE // steps_per_dispatch)

    def after(self, done: jax.Array, log: RunLog) -> None:
        """Count a dispatch; the first one compiles and is not timed."""
        self._dispatches += 1
        if self._dispatches == 1:
            done.block_until_ready()
            self._started = time.perf_counter()
        elif self._dispatches == self._last:
            done.block_until_ready()
            timed = (self._dispatches - 1) * self._more
            pace = (time.perf_counter() - self._started) / timed
            log.message(
                f"{pace * 1e3:.0f} ms a step: all {self._steps} steps take about "
                f"{datetime.timedelta(seconds=round(pace * self._steps))}"
            )


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
    """Hold a run directory, which is made if it is missing, and goes again if it stays empty."""
    new, lock = not workdir.exists(), filelock.FileLock(workdir / ".lock", timeout=0)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"{workdir} is in use by another training; wait for it or choose another --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        if not (workdir / "config.json").exists():  # it has not become a run
            (workdir / ".lock").unlink()
            if new and not os.listdir(workdir):
                workdir.rmdir()
        lock.release()


@contextlib.contextmanager
def _claimed(workdir: Path, config: Config, checkpoints_in: str | None) -> Iterator[None]:
    """Write the configuration into a new run directory, or check it against an old one's.

    A new directory is given up again if its training cannot start.
    """
    path = workdir / "config.json"
    if path.exists():
        differing = differing_fields(config, _config_of(path))
        if differing:
            raise UserError(
                f"{workdir} belongs to a run of another configuration "
                f"({'; '.join(differing)}); choose another --workdir"
            )
        if checkpoints_in:
            keep_elsewhere(workdir, checkpoints_in)
        yield
        return
    made = [workdir / name for name in ("phantom_dataset", "checkpoints", "checkpoints.location")]
    new = [path for path in made if not path.exists()]
    try:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        os.replace(partial, path)
        if checkpoints_in:
            keep_elsewhere(workdir, checkpoints_in)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        for made_here in new:
            if made_here.is_dir():
                shutil.rmtree(made_here, ignore_errors=True)
            else:
                made_here.unlink(missing_ok=True)
        raise


def _config_of(path: Path) -> Config:
    try:
        return config_from_dict(from_json(path.read_bytes()))
    except (ValueError, OSError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another --workdir") from error


def _dataset(config: Config, workdir: Path) -> tuple[Path, DatasetCard]:
    """The named dataset, or the embedded one, made on first use beside the run directories."""
    data = config.data
    directory = Path(data.directory) if data.directory else workdir / "phantom_dataset"
    if not data.directory and not directory.exists():
        prepare_phantom(
            directory,
            cases=data.phantom.cases,
            size_px=data.phantom.size_px,
            slices=data.phantom.slices,
            held_out_cases=data.phantom.held_out_cases,
            patches_per_volume=data.phantom.patches_per_volume,
            clinical_patch=data.clinical_patch_px,
            scale=data.scale,
            seed=data.phantom.seed,
        )
    card = dataset_card.load(directory)
    for name, wanted, found in (
        ("scale", data.scale, card.scale),
        ("clinical_patch_px", data.clinical_patch_px, card.clinical.patch_px),
    ):
        if wanted != found:
            raise UserError(
                f"config.data.{name}={wanted}, but {directory} was prepared with {found}; "
                f"pass --config.data.{name}={found} or prepare it again"
            )
    return directory, card


def _log(workdir: Path, start: int, steps: int, checkpoints: Checkpoints) -> RunLog:
    """The log of the first process, and its copy beside checkpoints that are elsewhere."""
    if not is_first():
        return NoLog()
    elsewhere = checkpoints.directory if "://" in str(checkpoints.directory) else None
    return RunLog(workdir, start, steps, elsewhere)


def _first_state(
    config: Config, method: Method, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[int, TrainState]:
    """The step and state to go on from: the newest checkpoint's, or the initial ones."""
    create = partial(create_train_state, config, method)
    like = jax.eval_shape(create)
    sharding = state_sharding(like, mesh)
    restored = checkpoints.restore(like, sharding)
    if restored:
        return restored
    # Optimised, the random numbers of every shape of parameters take a CPU 40 s to compile.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return 0, jax.jit(create, out_shardings=sharding, compiler_options=options)()


def _dispatch(
    config: Config,
    method: Method,
    mesh: jax.sharding.Mesh,
    dataset: Path,
    start: int,
    state: TrainState,
) -> tuple[Dispatch, float]:
    """Training from step `start` on with the batches of this dataset, and FLOPs a step."""
    if config.data.residency == "device":
        resident = load_resident(dataset, batch_size=config.batch_size, sharding=replicated(mesh))
        train_steps = make_resident_train_steps(config, method, mesh)
        flops = model_flops(train_steps.trace(state, resident).jaxpr)
        return lambda state: train_steps(state, resident), flops / config.steps_per_dispatch
    from data_pipelines.batches import train_batches  # imports TensorFlow, of no use otherwise

    batches = train_batches(
        dataset,
        batch_size=config.batch_size,
        start_step=start,
        seed=config.seed,
        augment=config.data.augment,
        sharding=split_batch(mesh),
    )
    train_step = make_train_step(config, method, mesh)
    flops = model_flops(train_step.trace(state, batch_shapes(config, config.batch_size)).jaxpr)
    return lambda state: train_step(state, next(batches)), flops


def _meta(config: Config, card: DatasetCard) -> CheckpointMeta:
    micro = [Anchors(air=case.air, tissue=case.tissue) for case in card.micro.cases]
    dataset = TrainedOn(scale=card.scale, window_hu=card.window_hu, micro_anchors=micro)
    return CheckpointMeta(config=dataclasses.asdict(config), dataset=dataset)


def _announce(config: Config, state: TrainState, start: int, workdir: Path) -> None:
    if not is_first():
        return
    devices = jax.devices()
    kind = f"{devices[0].platform} {devices[0].device_kind}"
    print(f"{len(devices)} device(s) ({kind}) of {jax.process_count()} process(es)")
    for branch, networks in state.params.items():
        counts = (
            f"{name} {sum(leaf.size for leaf in jax.tree.leaves(params)):,}"
            for name, params in networks.items()
        )
        print(f"{branch}: parameters of {', '.join(counts)}")
    verb = f"resuming at step {start} of" if start else "training for"
    print(f"{verb} {config.steps:,} steps of {config.batch_size} patch pair(s) in {workdir}")


def _check_finite(state: TrainState, step: int, interval: int) -> None:
    sums = jax.device_get(state.metric_sums)
    bad = sorted(name for name, total in sums.items() if not np.isfinite(total))
    if bad:
        first = (step - 1) // interval * interval + 1
        raise UserError(
            f"{', '.join(bad)} became non-finite in steps {first} to {step}; the last checkpoint "
            "is from before: lower optimizer.learning_rate, or look for bad patches"
        )


def _check_finite_parameters(state: TrainState, step: int) -> None:
    """The losses of a step are those of the parameters before it."""
    bad = [
        f"{branch}.{name}"
        for branch, networks in state.params.items()
        for name, params in networks.items()
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))
    ]
    if bad:
        raise UserError(
            f"parameters of {', '.join(bad)} became non-finite by step {step}; the last "
            "checkpoint is from before: lower optimizer.learning_rate, or look for bad patches"
        )
