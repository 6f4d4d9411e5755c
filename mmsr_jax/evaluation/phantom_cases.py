"""Phantoms of the evaluation: one slice each, imaged every way that the metrics ask for."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from data_pipelines.intensity import clinical_intensity
from data_pipelines.phantom import (
    MICRO_SPACING_MM,
    LungPhantom,
    scan_clinical,
    scan_micro,
    tube_coverage,
)

# Part of the entropy of every case's seed: no training phantom has it.
_EVALUATION = 0x5CA1E


@dataclasses.dataclass(frozen=True)
class PhantomCase:
    """One slice through a nodule; images are (rows, columns) in [-1, 1] of the window.

    The scans have the same noise if not said otherwise.
    """

    scan: np.ndarray
    scan_without_nodules: np.ndarray
    scan_with_other_noise: np.ndarray
    scan_shifted: np.ndarray  # the anatomy moved by half a clinical pixel, down and right
    micro: np.ndarray  # the truth, as the micro scanner sees it
    micro_without_nodules: np.ndarray
    lumens: np.ndarray  # (s·rows, s·columns) bool: inside an airway
    walls: np.ndarray  # inside an airway's outer surface
    nodules: tuple[np.ndarray, ...]  # a mask each, of what nodules change


def phantom_cases(
    count: int,
    *,
    window_hu: tuple[float, float],
    size_px: int = 512,
    scale: int = 8,
) -> list[PhantomCase]:
    """The first `count` phantoms of the evaluation, always the same; `size_px` micro pixels."""
    return [_case(index, window_hu, size_px, scale) for index in range(count)]


def _case(index: int, window_hu: tuple[float, float], size_px: int, scale: int) -> PhantomCase:
    seed, *noise = np.random.SeedSequence([_EVALUATION, index]).generate_state(4)
    phantom = LungPhantom(int(seed), size_px)
    z_mm = phantom.nodules[0].center_mm[2]
    truth, before = (phantom.slice_hu(z_mm, nodules=nodules) for nodules in (True, False))
    normalise = clinical_intensity(window_hu).normalise

    def image(scanner: Callable[..., np.ndarray], hu: np.ndarray, noise_seed: int) -> np.ndarray:
        return normalise(scanner(hu, np.random.default_rng(noise_seed)))

    def clinical(hu: np.ndarray, noise_seed: int = noise[0]) -> np.ndarray:
        return image(lambda hu, rng: scan_clinical(hu, rng, scale), hu, noise_seed)

    def coverage(surface: str) -> np.ndarray:
        z_px = z_mm / MICRO_SPACING_MM
        tubes = getattr(phantom, surface)
        return tube_coverage(tubes, z_px, phantom.depth_px, truth.shape) > 0.5

    nodules, found = ndimage.label(np.abs(truth - before) > 0.1 * (window_hu[1] - window_hu[0]))
    return PhantomCase(
        scan=clinical(truth),
        scan_without_nodules=clinical(before),
        scan_with_other_noise=clinical(truth, noise[1]),
        scan_shifted=clinical(np.roll(truth, (scale // 2, scale // 2), (0, 1))),
        micro=image(scan_micro, truth, noise[2]),
        micro_without_nodules=image(scan_micro, before, noise[2]),
        lumens=coverage("airway_lumens"),
        walls=coverage("airway_walls"),
        nodules=tuple(nodules == label + 1 for label in range(found)),
    )
