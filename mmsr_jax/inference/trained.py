"""The super-resolver of a training run, read from a checkpoint alone."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path

import jax
import numpy as np

import mmsr_jax
from mmsr_jax import checkpoints, methods
from mmsr_jax.config import Config
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.network import Network
from mmsr_jax.methods import Params


@dataclasses.dataclass(frozen=True)
class TrainedModel(SuperResolver):
    """A super-resolver whose training is known."""

    config: Config  # of the run
    step: int  # of the checkpoint


def load_model(run: str | Path, checkpoint: str = "last") -> TrainedModel:
    """The super-resolver of a run directory.

    Args:
      run: the run's directory (`--workdir` of training).
      checkpoint: "last", or "best" by the validation score.

    Raises:
      data_pipelines.errors.UserError: no checkpoint there, or of another architecture.
    """
    step, meta = checkpoints.load_meta(Path(run), checkpoint)
    config = meta.typed_config()
    method = methods.create(config)
    like = jax.eval_shape(method.init, jax.random.key(0))
    params = checkpoints.load_params(Path(run), step, like)
    low, high = meta.dataset["window_hu"]
    trunk, tail, trunk_reach_px, tail_reach_px = method.super_resolution
    return TrainedModel(
        network=Network(
            jax.jit(partial(trunk, params)),
            jax.jit(partial(tail, params)),
            config.data.scale,
            trunk_reach_px,
            tail_reach_px,
        ),
        window_hu=(low, high),
        provenance={
            "run": Path(run).resolve().name,
            "name": config.name,
            "method": config.method,
            "step": step,
            "parameters_sha256": parameters_sha256(params["generators"]),
            "mmsr_jax": mmsr_jax.__version__,
            "jax": jax.__version__,
        },
        config=config,
        step=step,
    )


def parameters_sha256(params: Params) -> str:
    """Hash of every array's name and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
