"""A trained model: everything that super-resolving a scan needs, read from a checkpoint alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.geometry import Volume
from data_pipelines.intensity import clinical_intensity, to_hu
from mmsr_jax import checkpoints, methods
from mmsr_jax.config import Config
from mmsr_jax.inference.tiles import super_resolve_slice

_TILE_PX = 128


@dataclasses.dataclass(frozen=True)
class SuperResolver:
    """A network with the normalisation it was trained with; never estimates from its input."""

    network: Callable[[np.ndarray], np.ndarray]  # (1, h, w, 1) → (1, s·h, s·w, 1) in [-1, 1]
    scale: int
    reach_px: float | None
    window_hu: tuple[float, float]
    config: Config  # of the run
    step: int  # of the checkpoint

    def normalised(self, image: np.ndarray, tile_px: int = _TILE_PX) -> np.ndarray:
        """Super-resolve one (rows, columns) slice in [-1, 1]; float32 in [-1, 1]."""
        return super_resolve_slice(
            self.network,
            np.asarray(image, np.float32),
            scale=self.scale,
            reach_px=self.reach_px,
            tile_px=tile_px,
        )

    def array(self, hu: np.ndarray, *, progress: bool = False) -> np.ndarray:
        """Super-resolve axial slices in Hounsfield units.

        Args:
          hu: (slices, rows, columns), any real dtype; clipped to the model's window.
          progress: show a progress bar on standard error.

        Returns:
          (slices, s·rows, s·columns) int16 Hounsfield units within the window.

        Raises:
          ValueError: if `hu` is not three-dimensional or not finite.
        """
        if hu.ndim != 3 or not np.isfinite(hu).all():
            raise ValueError(f"expected finite (slices, rows, columns), got shape {hu.shape}")
        window = clinical_intensity(self.window_hu)
        fine = np.empty((len(hu), *(self.scale * size for size in hu.shape[1:])), np.int16)
        for index in tqdm(range(len(hu)), unit="slice", disable=not progress):
            sr = self.normalised(window.normalise(hu[index]))
            fine[index] = np.rint(to_hu(sr, self.window_hu))
        return fine

    def volume(self, clinical: Volume, *, progress: bool = False) -> Volume:
        """Super-resolve a scan in Hounsfield units: s× finer in plane, the same slices."""
        return Volume(
            self.array(clinical.array, progress=progress),
            clinical.geometry.finer_in_plane(self.scale),
        )


def load_model(run: str | Path, checkpoint: str = "last") -> SuperResolver:
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
    return SuperResolver(
        network=jax.jit(lambda images: method.super_resolve(params, images)),
        scale=config.data.scale,
        reach_px=method.reach_px,
        window_hu=(low, high),
        config=config,
        step=step,
    )
