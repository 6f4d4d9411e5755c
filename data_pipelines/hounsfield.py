"""Whether intensities can be Hounsfield units of a chest."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.errors import UserError


def check_hounsfield(planes: Iterable[np.ndarray], name: str) -> None:
    """Check that intensities can be Hounsfield units of a chest: at least 1 % of it is air.

    Scanner padding, such as -2000 or -3024, is allowed.

    Args:
      planes: slices of one size, such as those of a (z, y, x) array; they are read once.
      name: of the scan, for the error.

    Raises:
      UserError: fewer than 1 % of the voxels lie in [-1200, -500] HU, or values lie outside
        [-32768, 32767].
    """
    lows, highs, shares = zip(*map(_statistics, planes))
    low, high, air = min(lows), max(highs), float(np.mean(shares))
    if air >= 0.01 and low >= -32768 and high <= 32767:
        return
    remedy = "apply the DICOM rescale slope and intercept"
    if low >= 0 and high > 500:
        remedy = "subtract the offset, often 1024, or " + remedy
    raise UserError(
        f"{name} is not in Hounsfield units: values {low:g} to {high:g}, "
        f"{air:.1%} of them air; {remedy}"
    )


def _statistics(plane: np.ndarray) -> tuple[float, float, float]:
    """Lowest and highest value, and the share of air."""
    air = np.mean((plane >= -1200) & (plane <= -500))
    return float(plane.min()), float(plane.max()), float(air)
