"""From what a network gives for a slice to what is stored, and how far both agree with the scan."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from mmsr_jax.inference.bicubic import bicubic, made_consistent, pooled
from mmsr_jax.inference.tiles import Window

Consistency = Literal["none", "project"]
Outside = Literal["bicubic", "empty"]
_LEAST_HU = -1024  # below is no tissue but a scanner's padding, beside which a surface would ring


class FinishedSlice(NamedTuple):
    """What is stored of one slice, int16 Hounsfield units.

    Attributes:
      fine: the super-resolved slice.
      deviation: standard deviation over an ensemble's members, 0 outside the mask, if there is one.
      disagreement: |x − f(sr)| of the network, on the scan's grid; 0 outside the mask.
      figures: sums for `consistency`.
    """

    fine: np.ndarray
    deviation: np.ndarray | None
    disagreement: np.ndarray
    figures: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Finishing:
    """How slices are finished.

    Attributes:
      scale: of the model.
      window_hu: of the model; the scan is compared where it lies within.
      consistency: "project" makes the output's block means those of the scan, but for padding.
      outside: what fills the pixels outside the mask: the scan's bicubic interpolation, or the
        window's lower end.
    """

    scale: int
    window_hu: tuple[float, float]
    consistency: Consistency
    outside: Outside

    def finish(
        self,
        hu: np.ndarray,
        window: Window,
        mask: np.ndarray | None,
        sr: np.ndarray | None,
        deviation: np.ndarray | None,
    ) -> FinishedSlice:
        """Finish one slice.

        Args:
          hu: the scan's whole slice, (rows, columns).
          window: the part of it that is stored.
          mask: bool, of the window's shape: where the network's output is wanted.
          sr: the network's, in Hounsfield units, of the window at s times its size; NaN where it
            was not computed. None if it was computed nowhere.
          deviation: likewise.
        """
        scan = window.of(hu).astype(np.float32)
        inside = np.ones(scan.shape, bool) if mask is None else mask
        fine_inside = inside.repeat(self.scale, 0).repeat(self.scale, 1)
        empty = np.full(fine_inside.shape, self.window_hu[0], np.float32)
        around = empty if inside.all() else bicubic(hu, window, self.scale)
        network = around if sr is None else np.where(np.isnan(sr), around, sr)
        compared = inside & (scan >= self.window_hu[0]) & (scan <= self.window_hu[1])
        difference = np.abs(scan - pooled(network, self.scale))
        if self.consistency == "project" and inside.any():
            network = made_consistent(network, np.maximum(scan, _LEAST_HU))
        outside = empty if self.outside == "empty" else around
        fine = _stored(np.where(fine_inside, network, outside))
        after = np.abs(scan - pooled(fine, self.scale))
        return FinishedSlice(
            fine,
            None if deviation is None else _stored(np.where(fine_inside, deviation, 0)),
            _stored(np.where(inside, difference, 0)),
            _sums("network", difference[compared]) | _sums("output", after[compared]),
        )


def consistency(
    slices: Iterable[Mapping[str, float]], window_hu: tuple[float, float]
) -> dict[str, Any]:
    """How far f(sr) lies from the scan, in pixels of the mask within the model's window.

    Args:
      slices: the figures of every slice.
      window_hu: data range of the PSNR.

    Returns:
      For the network's output and for what is stored: mean and largest absolute difference and root
      mean square in Hounsfield units, PSNR in dB; None without any pixel or, for the PSNR, any
      difference.
    """
    slices = list(slices)
    count = sum(figures["network_count"] for figures in slices)
    result: dict[str, Any] = {"pixels": int(count)}
    for what in ("network", "output"):
        if not count:
            result[what] = None
            continue
        rms = math.sqrt(sum(figures[f"{what}_squares"] for figures in slices) / count)
        result[what] = {
            "mae_hu": sum(figures[f"{what}_sum"] for figures in slices) / count,
            "rmse_hu": rms,
            "max_hu": max(figures[f"{what}_max"] for figures in slices),
            "psnr_db": 20 * math.log10((window_hu[1] - window_hu[0]) / rms) if rms else None,
        }
    return result


def _sums(what: str, difference: np.ndarray) -> dict[str, float]:
    values = difference.astype(np.float64)
    return {
        f"{what}_count": float(values.size),
        f"{what}_sum": float(values.sum()),
        f"{what}_squares": float((values**2).sum()),
        f"{what}_max": float(values.max(initial=0.0)),
    }


def _stored(hu: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
