"""Where in a scan pixels are spent: a box, a range of slices, a mask."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry
from data_pipelines.lung_mask import streamed_lung_mask
from data_pipelines.slices import SliceReader, open_slices
from mmsr_jax.inference.tiles import Window, bounding_window

LUNG = "lung"
_RIM_MM = 3.0  # the border of the region then lies in the chest wall, and not on the pleura
_SAME_MM = 1e-2  # masks may be written with rounded geometry
_SAME_DIRECTION = 1e-3


class Box(NamedTuple):
    """The part of a scan that becomes the output.

    Attributes:
      window: of every slice.
      slices: of the scan.
    """

    window: Window
    slices: range

    def geometry(self, scan: Geometry, scale: int) -> Geometry:
        """Of the output, `scale` times finer in plane than the scan."""
        corner = (self.window.left, self.window.top, self.slices.start)
        origin = scan.physical_point(corner)
        return Geometry(scan.spacing_mm, origin, scan.direction).finer_in_plane(scale)


Mask = Callable[[int], np.ndarray]  # slice of the scan → bool (rows, columns)


class Region(NamedTuple):
    """Where models are used.

    Attributes:
      mask: None: everywhere.
      files: that the mask was read from.
    """

    mask: Mask | None
    files: Sequence[Path] = ()


def box(roi: str, slices: str, reader: SliceReader) -> Box:
    """The box that two command-line values describe.

    Args:
      roi: "x,y,z", each "first:end", in voxels (the end is exclusive, an empty number means the
        border), or in millimetres of the LPS frame with "mm" at the end; then all voxels between
        are in the box. Empty: the whole scan.
      slices: "first:end", in slices; empty: all.
      reader: of the scan.

    Raises:
      UserError: the text is no such box, or the box holds no voxel.
    """
    size = (reader.shape[2], reader.shape[1], reader.shape[0])
    ranges = [range(n) for n in size]
    if roi:
        parts = roi.removesuffix("mm").split(",")
        if len(parts) != 3:
            raise UserError(
                f"--roi={roi}: give three ranges as x0:x1,y0:y1,z0:z1, or the same with mm at the "
                "end"
            )
        if roi.endswith("mm"):
            ranges = _from_millimetres(roi, parts, reader.geometry, size)
        else:
            ranges = [_range(f"--roi={roi}", part, n) for part, n in zip(parts, size, strict=True)]
    if slices:
        chosen = _range(f"--slices={slices}", slices, size[2])
        ranges[2] = range(max(chosen.start, ranges[2].start), min(chosen.stop, ranges[2].stop))
    if not all(ranges):
        given = {"roi": roi, "slices": slices}
        flags = " and ".join(f"--{name}={text}" for name, text in given.items() if text)
        raise UserError(
            f"{flags} holds no voxel of the scan, which has {' x '.join(map(str, size))}"
        )
    columns, rows, planes = ranges
    return Box(Window(rows.start, rows.stop, columns.start, columns.stop), planes)


@contextlib.contextmanager
def open_region(region: str, reader: SliceReader, name: str) -> Iterator[Region]:
    """The region that a command-line value names: "lung", a mask file, or none if empty.

    Args:
      region: the value; voxels of a file that are not 0 are inside.
      reader: of the scan.
      name: of the scan, for errors.

    Raises:
      UserError: the scan shows no lung, or the file is no mask on the scan's grid.
    """
    if not region:
        yield Region(None)
    elif region == LUNG:
        yield Region(streamed_lung_mask(reader, reader.geometry.spacing_mm, name).grown(_RIM_MM))
    else:
        with open_slices(Path(region), spacing_mm=reader.geometry.spacing_mm) as mask:
            _check_grid(region, mask, reader)
            yield Region(lambda index: mask.read(index) != 0, mask.files)


def bounds(mask: Mask, box: Box) -> Window | None:
    """The smallest window with all of a mask's pixels in a box; None if there are none."""
    anywhere = np.zeros((box.window.bottom, box.window.right), bool)
    for index in box.slices:
        box.window.of(anywhere)[...] |= box.window.of(mask(index))
    return bounding_window(anywhere) if anywhere.any() else None


def _range(flag: str, text: str, size: int) -> range:
    found = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
    if not found:
        raise UserError(f"{flag}: {text!r} is no range; write it as first:end, such as 10:20")
    start, stop = int(found[1] or 0), int(found[2] or size)
    if not start < stop <= size:
        raise UserError(f"{flag}: {text!r} must rise and lie within 0:{size}")
    return range(start, stop)


def _from_millimetres(
    roi: str, parts: list[str], geometry: Geometry, size: tuple[int, ...]
) -> list[range]:
    """The voxels whose centres lie in the box along the scan's axes that holds the given one."""
    try:
        ends = [sorted(map(float, part.split(":"))) for part in parts]
        low, high = zip(*((first, last) for first, last in ends), strict=True)
        if not np.isfinite([low, high]).all():
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"--roi={roi}: in millimetres every range needs two numbers, such as -120:-20.5"
        ) from error
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
    axes = np.reshape(geometry.direction, (3, 3)) * np.asarray(geometry.spacing_mm)
    indices = np.linalg.solve(axes, corners - np.reshape(geometry.origin_mm, (3, 1)))
    return [
        range(max(math.ceil(lowest - 1e-6), 0), min(math.floor(highest + 1e-6) + 1, n))
        for lowest, highest, n in zip(indices.min(axis=1), indices.max(axis=1), size, strict=True)
    ]


def _check_grid(path: str, mask: SliceReader, scan: SliceReader) -> None:
    a, b = mask.geometry, scan.geometry
    same = mask.shape == scan.shape
    same = same and np.allclose(a.spacing_mm, b.spacing_mm, atol=_SAME_MM)
    same = same and np.allclose(a.origin_mm, b.origin_mm, atol=_SAME_MM)
    if not (same and np.allclose(a.direction, b.direction, atol=_SAME_DIRECTION)):
        raise UserError(
            f"--region={path} has another grid than the scan ({_grid(mask)}, not {_grid(scan)}); "
            "resample it to the scan"
        )


def _grid(reader: SliceReader) -> str:
    slices, rows, columns = reader.shape
    x, y, z = reader.geometry.origin_mm
    return f"{columns} x {rows} x {slices} voxels from ({x:.4g}, {y:.4g}, {z:.4g}) mm"
