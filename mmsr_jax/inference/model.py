"""A trained network with the normalisation it was trained with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.geometry import Volume
from data_pipelines.intensity import clinical_intensity, to_hu
from mmsr_jax.inference.memory import plan
from mmsr_jax.inference.network import Network
from mmsr_jax.inference.tiles import super_resolve_slices

_TILE_PX = 128


@dataclasses.dataclass(frozen=True)
class SuperResolver:
    """Everything that super-resolving a scan needs; never estimates from its input.

    Attributes:
      network: its two functions, jitted.
      window_hu: the Hounsfield units that are −1 and 1.
      provenance: where it comes from, for reports: run, step, hash of the parameters, versions.
    """

    network: Network
    window_hu: tuple[float, float]
    provenance: Mapping[str, Any]

    @property
    def scale(self) -> int:
        """How many times finer in plane the output is."""
        return self.network.scale

    def normalised(self, image: np.ndarray) -> np.ndarray:
        """Super-resolve one (rows, columns) slice in [-1, 1]; float32 in [-1, 1]."""
        return super_resolve_slices(self.network, image[None], tile_px=_TILE_PX)[0]

    def array(self, hu: np.ndarray, *, progress: bool = False) -> np.ndarray:
        """Super-resolve axial slices in Hounsfield units, all in memory.

        Args:
          hu: (slices, rows, columns), any real dtype; clipped to the model's window.
          progress: show a progress bar on standard error.

        Returns:
          (slices, s·rows, s·columns) int16 Hounsfield units within the window.

        Raises:
          ValueError: if `hu` is not three-dimensional or not finite.
          UserError: a slice is too large for the memory.
        """
        if hu.ndim != 3 or not np.isfinite(hu).all():
            raise ValueError(f"expected finite (slices, rows, columns), got shape {hu.shape}")
        window = clinical_intensity(self.window_hu)
        network, tile_px, *_ = plan(self.network, hu.shape[1:])
        fine = np.empty((len(hu), *(self.scale * size for size in hu.shape[1:])), np.int16)
        for index in tqdm(range(len(hu)), unit="slice", disable=not progress):
            images = window.normalise(hu[index : index + 1])
            (sr,) = super_resolve_slices(network, images, tile_px=tile_px)
            fine[index] = np.rint(to_hu(sr, self.window_hu))
        return fine

    def volume(self, clinical: Volume, *, progress: bool = False) -> Volume:
        """Super-resolve a scan in Hounsfield units: s× finer in plane, the same slices."""
        return Volume(
            self.array(clinical.array, progress=progress),
            clinical.geometry.finer_in_plane(self.scale),
        )
