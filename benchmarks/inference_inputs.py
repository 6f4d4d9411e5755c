"""What every contender gets: the weights of G1 and the slices, from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from benchmarks.weights import named_weights, params_of_weights
from configs import cyclegan
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.intensity import CLINICAL_WINDOW_HU, clinical_intensity
from data_pipelines.volumes import write_volume
from mmsr_jax import methods
from mmsr_jax.inference.network import Network

SLICES, WEIGHTS, SCAN = "slices.npy", "weights.npz", "scan.nii"
_G1 = "clinical_to_micro"
_SMOOTHING_PX = 1.5
_MEAN_HU, _DEVIATION_HU = -500.0, 300.0
_SPACING_MM = (0.7, 0.7, 1.0)


def write_inputs(folder: Path, slices: int, size: int) -> None:
    """Random weights, and smooth noise in Hounsfield units as an array and as a scan."""
    hu = _smooth_noise((slices, size, size))
    np.save(folder / SLICES, clinical_intensity(CLINICAL_WINDOW_HU).normalise(hu))
    write_volume(Volume(hu, Geometry(_SPACING_MM)), folder / SCAN)
    params = methods.create(cyclegan.get_config("paper")).init(jax.random.key(0))
    weights: dict[str, Any] = named_weights(params["generators"][_G1])
    np.savez(folder / WEIGHTS, **weights)


def jax_network(weights: Mapping[str, np.ndarray]) -> Network:
    """G1 of the preset `paper`, as a trained run gives it."""
    config = cyclegan.get_config("paper")
    method = methods.create(config)
    like = jax.eval_shape(method.init, jax.random.key(0))["generators"][_G1]
    params = {"generators": {_G1: params_of_weights(weights, like)}}
    trunk, tail, *reaches = method.super_resolution
    return Network(
        jax.jit(lambda images: trunk(params, images)),
        jax.jit(lambda features: tail(params, features)),
        config.data.scale,
        *reaches,
    )


def _smooth_noise(shape: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, _SMOOTHING_PX, _SMOOTHING_PX))
    hu = _MEAN_HU + _DEVIATION_HU * noise / noise.std()
    return np.rint(np.clip(hu, *CLINICAL_WINDOW_HU)).astype(np.int16)
