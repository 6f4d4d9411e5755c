"""From stored intensities to [-1, 1], so that tissue has the same value in both modalities.

The MMSR loss compares values across modalities: air is -1 and soft tissue is +0.4857 in each.
"""

import dataclasses

import numpy as np
from scipy import ndimage, signal

CLINICAL_WINDOW_HU = (-1000.0, 400.0)
_AIR_HU = -1000.0
_TISSUE_HU = 40.0
_BINS = 256
_SMOOTHING_BINS = 5.0
_PROMINENCE = 0.015  # of the tallest mode, after the square root
_SEPARATION = 0.1  # of the histogram's range, at least, between air and tissue
_SAMPLES = 4_000_000  # voxels are enough for a histogram


def _in_window(hu: float, window_hu: tuple[float, float]) -> float:
    low, high = window_hu
    return 2 * (hu - low) / (high - low) - 1


AIR = _in_window(_AIR_HU, CLINICAL_WINDOW_HU)
TISSUE = _in_window(_TISSUE_HU, CLINICAL_WINDOW_HU)


@dataclasses.dataclass(frozen=True)
class Intensity:
    """An affine map between stored intensities and [-1, 1].

    Attributes:
      air: stored value that becomes -1; above `tissue` where air is bright.
      tissue: stored value of soft tissue, that becomes 0.4857 (40 HU in [-1000, 400]).
      method: how the anchors were found: "window", "modes" or "percentiles".
    """

    air: float
    tissue: float
    method: str

    def __post_init__(self) -> None:
        if not np.isfinite([self.air, self.tissue]).all() or self.air == self.tissue:
            raise ValueError(f"air and tissue must differ, got {self.air} and {self.tissue}")

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Map stored intensities of any shape to float32, clipped to [-1, 1]."""
        slope = (TISSUE - AIR) / (self.tissue - self.air)
        scaled = (np.asarray(values, dtype=np.float32) - self.air) * slope + AIR
        return np.clip(scaled, -1, 1).astype(np.float32)

    def denormalise(self, normalised: np.ndarray) -> np.ndarray:
        """Map [-1, 1] to stored intensities, float32; undoes `normalise` but for the clipping."""
        slope = (self.tissue - self.air) / (TISSUE - AIR)
        return ((np.asarray(normalised, dtype=np.float32) - AIR) * slope + self.air).astype(
            np.float32
        )


def clinical_intensity(window_hu: tuple[float, float] = CLINICAL_WINDOW_HU) -> Intensity:
    """Map of a window in HU to [-1, 1]; the anchors of the default are -1000 and 40 HU."""
    low, high = window_hu
    if not low < high:
        raise ValueError(f"window_hu must rise, got {window_hu}")
    return Intensity(low, low + (high - low) * (TISSUE - AIR) / 2, "window")


def to_hu(
    normalised: np.ndarray, window_hu: tuple[float, float] = CLINICAL_WINDOW_HU
) -> np.ndarray:
    """Hounsfield units, float32, of values in [-1, 1]."""
    return clinical_intensity(window_hu).denormalise(normalised)


def estimate_anchors(volume: np.ndarray, *, inverted: bool = False) -> Intensity:
    """Find air and soft tissue in the histogram of a micro-CT volume.

    Air is the lowest prominent mode, soft tissue the highest. Saturated voxels at the two ends
    are left out, so that neither padding with 0 nor clipping at 255 is taken for a mode. Without
    two modes the anchors are the 0.5 and 99.5 percentiles.

    Args:
      volume: stored intensities, any shape.
      inverted: air is bright and tissue dark, as in electron microscopy; then `air > tissue`.

    Returns:
      The anchors, with method "modes" or "percentiles".

    Raises:
      ValueError: (nearly) all voxels are equal.
    """
    sign = -1.0 if inverted else 1.0
    values = volume.ravel()
    if values.size > _SAMPLES:  # at random, since a fixed step may meet the same column always
        values = values[np.random.default_rng(0).integers(values.size, size=_SAMPLES)]
    values = sign * values.astype(np.float32)
    method, anchors = "modes", _two_modes(values, whole=volume.dtype.kind in "iu")
    if anchors is None:
        low, high = np.percentile(values, [0.5, 99.5])
        if low == high:
            raise ValueError(f"nearly all voxels are {sign * low:g}")
        method, anchors = "percentiles", (float(low), float(high))
    return Intensity(sign * anchors[0], sign * anchors[1], method)


def _two_modes(values: np.ndarray, whole: bool) -> tuple[float, float] | None:
    """Lowest and highest prominent mode, or None when they are not two distant ones."""
    values = values[(values > values.min()) & (values < values.max())]
    if values.size == 0:
        return None
    low, high = np.percentile(values, [0.02, 99.98])
    # Bins of a whole number of grey values: any other width makes a comb of integers.
    width = max(1.0, np.ceil((high - low) / _BINS)) if whole else (high - low) / _BINS
    if high - low <= 4 * width * _SMOOTHING_BINS:
        return None
    counts, edges = np.histogram(values, np.arange(low - width / 2, high + width, width))
    # The square root makes the counting noise the same in tall and in low modes.
    smooth = np.sqrt(ndimage.gaussian_filter1d(counts.astype(float), _SMOOTHING_BINS))
    # Air may be clipped, so that its mode is the first bin: a bin before it makes that a peak.
    peaks, _ = signal.find_peaks(np.insert(smooth, 0, 0), prominence=_PROMINENCE * smooth.max())
    centres = (edges[:-1] + edges[1:])[peaks - 1] / 2
    if len(peaks) < 2 or centres[-1] - centres[0] < _SEPARATION * (high - low):
        return None
    return float(centres[0]), float(centres[-1])
