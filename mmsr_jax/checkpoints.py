"""Checkpoints of a run: the whole train state, and enough beside it to super-resolve a scan."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from data_pipelines.errors import UserError
from mmsr_jax.config import Config, config_from_dict
from mmsr_jax.methods import Params
from mmsr_jax.train_state import TrainState

_DIRECTORY = "checkpoints"


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """What travels with the arrays, so that a checkpoint alone can super-resolve a scan."""

    config: dict[str, Any]
    dataset: dict[str, Any]  # scale, clinical window and micro anchors of the training data

    def typed_config(self) -> Config:
        """The configuration of the run."""
        return config_from_dict(self.config)


class Checkpoints:
    """The checkpoints of a run directory: the last two, and the best by validation score.

    A save is atomic: killed at any moment, it leaves the earlier checkpoints intact.
    """

    def __init__(self, workdir: Path):
        self._path = (workdir / _DIRECTORY).absolute()

        def score(metrics: dict[str, float]) -> float:
            return metrics["score"]

        best = policies.BestN(
            get_metric_fn=score,
            reverse=True,  # a lower score is better
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = policies.AnyPreservationPolicy([policies.LatestN(2), best])
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=score,  # without it the metrics are not written
                best_mode="min",
                create=True,
                cleanup_tmp_directories=True,  # of a save that was killed
            ),
            item_names=("params", "rest", "meta"),
        )

    def save(
        self, step: int, state: TrainState, meta: CheckpointMeta, score: float | None = None
    ) -> None:
        """Start saving in the background; `score` is the validation score, lower is better."""
        if step in self._manager.all_steps():
            return
        params, rest = _split(state)
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

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def restore(self, like: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest train state, placed by `sharding`; `like` gives its structure.

        Raises:
          UserError: the checkpoint holds other arrays than `like`.
        """
        step = self._manager.latest_step()
        params, rest = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _split(like),
        )
        restored = _restore(self._manager, step, self._path, params=params, rest=rest)
        return TrainState(params=restored["params"], **restored["rest"])

    def wait(self) -> None:
        """Block until a save that is under way is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and free the manager's threads."""
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
            return step, CheckpointMeta(**manager.restore(step, args=args)["meta"])
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
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


def _restore(manager: ocp.CheckpointManager, step: int, path: Path, **targets: Any) -> Any:
    args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
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
    return restored


def _mismatch(path: Path, step: int, reason: object) -> str:
    detail = " ".join(str(reason).split())[:200]
    return (
        f"checkpoint {step} of {path} does not fit the networks of its configuration ({detail}); "
        "it was damaged or made by another architecture: use another run directory"
    )


def _reader(run: Path) -> ocp.CheckpointManager:
    path = (run / _DIRECTORY).absolute()
    if not path.is_dir():
        raise UserError(f"{run} is no run directory: it has no {_DIRECTORY} folder")
    return ocp.CheckpointManager(
        path,
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_names=("params", "rest", "meta"),
    )


def _step(manager: ocp.CheckpointManager, run: Path, which: str) -> int:
    steps = manager.all_steps()
    if not steps:
        raise UserError(f"{run} holds no checkpoint yet; train it first")
    if which == "best":
        scores = {}
        for step in steps:
            metrics = manager.metrics(step)
            if metrics:
                scores[step] = metrics["score"]
        if scores:
            return min(scores, key=lambda step: scores[step])
    return max(steps)
