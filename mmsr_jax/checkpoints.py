"""Checkpoints of a run: the whole train state, and enough beside it to super-resolve a scan."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from data_pipelines.errors import UserError
from data_pipelines.typed_json import typed
from mmsr_jax.buckets import place_of_checkpoints, usable_bucket
from mmsr_jax.config import Config, check_config, config_from_dict
from mmsr_jax.fingerprint import fingerprint, text_fingerprint
from mmsr_jax.methods import Params
from mmsr_jax.processes import is_first, step_of_all
from mmsr_jax.train_state import TrainState

_DIRECTORY = "checkpoints"
_ELSEWHERE = (
    "checkpoints.location"  # the file that says where they are, if not in the run directory
)
_DELAYS_S = (0, 2, 8)  # before the attempts to save
_PATIENCE_S = 120  # with an attempt; a bucket's clients try again for a quarter of an hour


def directory_of(workdir: Path) -> str:
    """Where the checkpoints of a run are: in its directory, unless a file there says else.

    Raises:
      UserError: that file is damaged.
    """
    elsewhere = workdir / _ELSEWHERE
    if elsewhere.is_file() and not (workdir / _DIRECTORY).is_dir():
        try:
            place = elsewhere.read_text().strip()
        except UnicodeDecodeError:
            place = ""
        if not place or not place.isprintable():
            raise UserError(f"{elsewhere} is damaged; write the place of the checkpoints into it")
        return place
    return str(workdir / _DIRECTORY)


def keep_elsewhere(workdir: Path, directory: str) -> None:
    """Note in a run directory that its checkpoints are in another place.

    Raises:
      UserError: they are in a third one already.
    """
    known = (workdir / _ELSEWHERE).is_file() or (workdir / _DIRECTORY).is_dir()
    if known and directory_of(workdir) != directory:
        raise UserError(
            f"--checkpoints={directory}: those of {workdir} are in {directory_of(workdir)}; leave "
            "the flag out or choose another --workdir"
        )
    (workdir / _ELSEWHERE).write_text(directory + "\n")


class Anchors(TypedDict):
    """Of a micro case, in its own units."""

    air: float
    tissue: float


class TrainedOn(TypedDict):
    """What of the training data a checkpoint remembers."""

    scale: int
    window_hu: tuple[float, float]
    micro_anchors: list[Anchors]


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """What travels with the arrays, so that a checkpoint alone can super-resolve a scan."""

    config: dict[str, Any]
    dataset: TrainedOn
    fingerprints: dict[str, int] = dataclasses.field(default_factory=dict)  # when saved

    def typed_config(self) -> Config:
        """The configuration of the run."""
        return config_from_dict(self.config)


class Checkpoints:
    """The checkpoints of a run: the last two, and the best by validation score.

    A save is atomic: killed at any moment, it leaves the earlier checkpoints intact. One that fails
    does not end training: it is tried again, then reported.
    """

    def __init__(self, directory: epath.PathLike, report: Callable[[str], None] = print):
        """Open or make them, with `report` to tell the user of failures.

        Args:
          directory: local, or of a bucket (gs://).
          report: takes one line.

        Raises:
          UserError: a bucket that cannot be used (see `mmsr_jax.buckets`), or what is there says
            nothing that Orbax understands.
        """
        self.directory, self._report = place_of_checkpoints(directory), report
        self._failure: str | None = None  # of the last save

        def score(metrics: dict[str, float]) -> float:
            return metrics["score"]

        best = policies.BestN(
            get_metric_fn=score,
            reverse=True,  # a lower score is better
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = policies.AnyPreservationPolicy([policies.LatestN(2), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=score,  # without it the metrics are not written
            best_mode="min",
            create=True,
            cleanup_tmp_directories=True,  # of a save that was killed
            async_options=ocp.AsyncOptions(timeout_secs=_PATIENCE_S),
        )
        self._manager = _manager(self.directory, options)

    def save(
        self,
        step: int,
        state: TrainState,
        meta: CheckpointMeta,
        score: float | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Save in the background; or, if the save before failed, or `wait`, here and now.

        `score` is the validation score, lower is better.

        Raises:
          UserError: with `wait`, when it could not be saved.
        """
        self._settle()
        if step in self._manager.all_steps():
            return
        # Several processes save in step: one of them cannot try again by itself.
        delays_s = _DELAYS_S if jax.process_count() == 1 else _DELAYS_S[:1]
        for delay_s in delays_s:
            time.sleep(delay_s)
            wait_now = wait or self._failure is not None
            try:
                self._start(step, state, meta, score)
                if wait_now:
                    self._manager.wait_until_finished()
                self._failure = None
                return
            except Exception as error:
                self._failure = _one_line(error)
        if wait:
            raise UserError(
                f"checkpoint {step} cannot be saved in {self.directory} ({self._failure}); "
                f"the newest there is of step {self._manager.latest_step()}: mend or free the "
                "storage, then the same command goes on from it"
            )
        self._warn(f"checkpoint {step}")

    def _settle(self) -> None:
        """Wait for the save before, and report it if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the storage says, in whichever way
            self._failure = _one_line(error)
            self._warn("the last checkpoint")

    def _warn(self, what: str) -> None:
        self._report(
            f"WARNING: {what} could not be saved in {self.directory} ({self._failure}); "
            "training goes on and tries again with the next one"
        )

    def _start(
        self, step: int, state: TrainState, meta: CheckpointMeta, score: float | None
    ) -> None:
        params, rest = _split(state)
        meta = dataclasses.replace(
            meta,
            fingerprints={
                "params": int(fingerprint(params)),
                "rest": int(fingerprint(rest)),
                "meta": text_fingerprint([meta.config, meta.dataset]),
            },
        )
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
            ),
            metrics=None if score is None else {"score": score},
            force=True,
        )

    def restore(self, like: TrainState, sharding: TrainState) -> tuple[int, TrainState] | None:
        """Step and state of the newest checkpoint that can be read; None if there is none.

        Newer ones, which are damaged, are reported and set aside under another name.

        Args:
          like: gives shapes and types.
          sharding: of every array, in the same structure.

        Raises:
          UserError: there are checkpoints, and all are damaged or hold other arrays than `like`.
        """
        params, rest = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            *map(_split, (like, sharding)),
        )
        failures: dict[int, UserError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = _restore(self._manager, step, self.directory, params=params, rest=rest)
            except UserError as error:
                failures[step] = error
                continue
            self._set_aside(failures)
            return step, TrainState(params=restored["params"], **restored["rest"])
        if failures:
            raise UserError(f"{failures[max(failures)]}; use another run directory")
        return None

    def _set_aside(self, failures: dict[int, UserError]) -> None:
        for step, error in failures.items():
            aside = self.directory / f"damaged-{step}"
            self._report(f"WARNING: {error}. It is {aside} now; going on from the one before")
            if is_first():
                aside.rmtree(missing_ok=True)
                (self.directory / str(step)).rename(aside)
        if failures:
            with step_of_all():
                pass
            self._manager.reload()

    def wait(self) -> None:
        """Block until a save that is under way is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving, report what fails, and free the manager's threads."""
        self._settle()
        with contextlib.suppress(Exception):  # that of a save that is reported
            self._manager.close()


def load_meta(run: Path, which: str = "last") -> tuple[int, CheckpointMeta]:
    """(step, meta) of a run's "last" or "best" checkpoint.

    Raises:
      UserError: the directory holds no checkpoint, or a damaged one.
    """
    with _reader(run) as manager:
        step = _step(manager, run, which)
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        try:
            saved = manager.restore(step, args=args)["meta"]
            meta = typed(saved, CheckpointMeta)
            wanted = meta.fingerprints.get("meta")
            if wanted not in (None, text_fingerprint([saved["config"], saved["dataset"]])):
                raise ValueError("meta: other bits than were saved")
            check_config(meta.typed_config())
            low, high = meta.dataset["window_hu"]
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"a window from {low} to {high} HU")
            return step, meta
        except Exception as error:  # whatever Orbax raises of damaged files
            raise UserError(_mismatch(run, step, error)) from error


def load_params(run: Path, step: int, like: Params) -> Params:
    """The parameters of one checkpoint on the default device; `like` gives their structure.

    Raises:
      UserError: the checkpoint holds parameters of another architecture.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like
    )
    with _reader(run) as manager:
        return _restore(manager, step, run, params=target)["params"]


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    rest = state._asdict()
    return rest.pop("params"), rest


def _restore(
    manager: ocp.CheckpointManager, step: int, path: epath.PathLike, **targets: Any
) -> Any:
    """Arrays like the targets, by name, and "meta".

    Raises:
      UserError: they cannot be read, have other shapes, or are not what was saved.
    """
    args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
        )
        saved = typed(restored["meta"], CheckpointMeta)
    except Exception as error:  # of truncated arrays Orbax says just that
        raise UserError(_mismatch(path, step, error)) from error
    for name, target in targets.items():
        for (where, wanted), found in zip(
            jax.tree_util.tree_leaves_with_path(target),
            jax.tree.leaves(restored[name]),
            strict=True,
        ):
            if wanted.shape != found.shape:
                place = jax.tree_util.keystr(where)
                raise UserError(
                    _mismatch(path, step, f"{place} is {found.shape}, not {wanted.shape}")
                )
    found = {name: int(fingerprint(restored[name])) for name in targets}
    found["meta"] = text_fingerprint([restored["meta"][name] for name in ("config", "dataset")])
    changed = [name for name in found if saved.fingerprints.get(name, found[name]) != found[name]]
    if changed:
        raise UserError(_mismatch(path, step, f"{', '.join(changed)}: other bits than were saved"))
    return restored


def _mismatch(path: epath.PathLike, step: int, reason: object) -> str:
    return (
        f"checkpoint {step} of {path} does not fit the networks of its configuration "
        f"({_one_line(reason)}); it was damaged or made by another architecture"
    )


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__


def _reader(run: Path) -> ocp.CheckpointManager:
    path = place_of_checkpoints(directory_of(run))
    with usable_bucket(path):
        there = path.is_dir()
    if not there and "://" in str(path):  # gcsfs does not tell these apart
        raise UserError(f"{run}: its checkpoints in {path} are gone or out of reach")
    if not there:
        raise UserError(f"{run} is no run directory: it has no {_DIRECTORY} folder")
    return _manager(path, ocp.CheckpointManagerOptions(read_only=True))


def _manager(path: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Of a place of checkpoints, whose descriptions Orbax reads at once."""
    with usable_bucket(path):
        try:
            return ocp.CheckpointManager(
                path, options=options, item_names=("params", "rest", "meta")
            )
        except Exception as error:  # Orbax names no kinds
            if isinstance(error, OSError) or "://" in str(path):
                raise
            raise UserError(
                f"{path} holds a damaged checkpoint ({_one_line(error)}); move it elsewhere"
            ) from error


def _step(manager: ocp.CheckpointManager, run: Path, which: str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise UserError(f"{run} holds no checkpoint yet; train it first")
    if which == "best":
        scores = {}
        for step in steps:
            score = _score(manager, step)
            if score is not None:
                scores[step] = score
        if scores:
            return min(scores, key=lambda step: scores[step])
    return max(steps)


def _score(manager: ocp.CheckpointManager, step: int) -> float | None:
    """The score that a checkpoint was saved with, if it can be read."""
    try:
        score = manager.metrics(step)["score"]
    except Exception:  # Orbax names no kinds
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None
