"""Where in a volume to sample: the lungs of a clinical scan, the specimen of a micro-CT volume."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np
from scipy import ndimage
from skimage import filters, measure, morphology

from data_pipelines.errors import UserError

_LUNG_HU = -320  # lung and air below, soft tissue above
_VOID_HU = -950  # air below; lung above, but for emphysema
_WORKING_MM = 2.0  # masks are computed on voxels of about this size
_LEAK_MM = 3.0  # opened by this: what is narrower than twice as much joins nothing
_CLOSING_MM = 10.0  # vessels and tumours narrower than twice this stay inside the lungs
_HOLE_MM2 = 1500.0  # a tumour in a slice of lung; the heart is larger
_SECOND_LUNG = 0.1  # of the size of the first: what is smaller is no lung
_SMALLEST = 0.005  # of the volume: what is smaller are no lungs
_SPECIMEN_VOXELS = 64  # along the longest axis, when a specimen is told from the air around it
_TWO_CLASSES = 0.75  # of the variance that two classes must explain to be a specimen and air


@dataclasses.dataclass(frozen=True, eq=False)
class LungMask:
    """A mask of the lungs that is held in the coarse voxels that it was found on.

    Attributes:
      coarse: bool, (z, y, x) in blocks of voxels.
      block: voxels of the scan in a coarse one, along (z, y, x).
      shape: of the scan, (z, y, x).
      steps_mm: size of a coarse voxel, (z, y, x).
    """

    coarse: np.ndarray
    block: tuple[int, ...]
    shape: tuple[int, ...]
    steps_mm: tuple[float, ...]

    def grown(self, rim_mm: float) -> Callable[[int], np.ndarray]:
        """The lungs and a rim of the tissue around them, without the steps of the blocks.

        Returns:
          A function from the index of an axial slice to bool, (rows, columns).
        """
        inside, outside = (_depth(part, self.steps_mm) for part in (self.coarse, ~self.coarse))
        depth_mm = (inside - outside).astype(np.float32)

        def mask(index: int) -> np.ndarray:
            plane = depth_mm[index // self.block[0]]
            fine = ndimage.zoom(plane, self.block[1:], order=1, mode="nearest", grid_mode=True)
            return fine[: self.shape[1], : self.shape[2]] > -rim_mm

        return mask


def lung_mask(hu: np.ndarray, spacing_mm: tuple[float, float, float], name: str) -> np.ndarray:
    """Segment both lungs, with the vessels and tumours in them.

    Threshold, air outside the patient removed, two largest components, closing, filled holes.
    A lung that the scan crops touches the border as the air outside does; what tells them apart
    is that air lies below -950 HU. The boundary is accurate to the 2 mm voxels used inside.

    Args:
      hu: (z, y, x) axial slices in Hounsfield units; scanner padding may lie below -1024.
      spacing_mm: (x, y, z).
      name: of the scan, for the error.

    Returns:
      bool, of the shape of `hu`.

    Raises:
      UserError: what was found fills less than 0.5 % of the volume.
    """
    mask = streamed_lung_mask(hu, spacing_mm, name)
    return _repeated(mask.coarse, mask.block, mask.shape)


def streamed_lung_mask(
    planes: Iterable[np.ndarray], spacing_mm: tuple[float, float, float], name: str
) -> LungMask:
    """`lung_mask` of a scan that is not held in memory: same mask, same error.

    Args:
      planes: its axial slices, which are read once, a block of about 2 mm at a time.
      spacing_mm: (x, y, z).
      name: of the scan, for the error.
    """
    block = tuple(max(1, round(_WORKING_MM / step)) for step in reversed(spacing_mm))
    steps_mm = tuple(step * factor for step, factor in zip(reversed(spacing_mm), block))
    slabs, shape = [], (0, 0, 0)
    remaining = iter(planes)
    while slab := list(itertools.islice(remaining, block[0])):
        slabs.append(_pooled(np.maximum(slab, -1024), block))
        shape = (shape[0] + len(slab), *slab[0].shape)
    return LungMask(_coarse_mask(np.concatenate(slabs), steps_mm, name), block, shape, steps_mm)


def specimen_mask(volume: np.ndarray, *, air_is_dark: bool = True) -> np.ndarray:
    """Segment the specimen in a micro-CT volume, with the alveolar air in it.

    Otsu's threshold on a copy that is pooled until alveoli are one grey, largest component,
    filled holes. Tissue fills the field of view when the two classes explain less than 75 % of
    the pooled variance; then the mask is the whole volume.

    Args:
      volume: (z, y, x), any intensity unit.
      air_is_dark: False where air is brighter than tissue, as in electron microscopy.

    Returns:
      bool, of the shape of `volume`.
    """
    factors = tuple(
        max(1, min(size, round(max(volume.shape) / _SPECIMEN_VOXELS))) for size in volume.shape
    )
    coarse = ndimage.gaussian_filter(_pooled(volume, factors), 1.0)
    if not air_is_dark:
        coarse = -coarse
    if _explained_by_two_classes(coarse) < _TWO_CLASSES:
        return np.ones(volume.shape, dtype=bool)
    labels = measure.label(coarse > filters.threshold_otsu(coarse), connectivity=1)
    sizes = np.bincount(labels.ravel())[1:]
    specimen = labels == 1 + sizes.argmax()
    return _repeated(ndimage.binary_fill_holes(specimen), factors, volume.shape)


def _coarse_mask(coarse: np.ndarray, steps_mm: tuple[float, ...], name: str) -> np.ndarray:
    """Mask of the lungs in Hounsfield units that are pooled to voxels of about 2 mm."""
    # The outside is void less its erosion and the voxels that mix void and skin: restore both.
    margin_mm = _LEAK_MM + 1.5 * max(steps_mm[1:])
    air = (coarse < _LUNG_HU) & (_depth(~_outside(coarse, steps_mm), steps_mm) > margin_mm)
    lungs = _two_largest(air, coarse, _body(coarse, steps_mm))
    if lungs.mean() < _SMALLEST:
        raise UserError(
            f"no lung found in {name} ({lungs.mean():.2%} of the volume); "
            "give axial chest CT in Hounsfield units"
        )
    return _filled(_closed(lungs, steps_mm), steps_mm)


def _explained_by_two_classes(values: np.ndarray) -> float:
    """Part of the variance that lies between the classes of Otsu's threshold, 0 to 1."""
    if values.min() == values.max():
        return 0.0
    above = values > filters.threshold_otsu(values)
    share = above.mean()
    between = share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2
    return float(between / values.var())


def _outside(coarse: np.ndarray, steps_mm: tuple[float, ...]) -> np.ndarray:
    """Core of the air around the patient: wide void that touches the border of a slice."""
    cores = measure.label(_depth(coarse < _VOID_HU, steps_mm) > _LEAK_MM, connectivity=1)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    touching = cores.copy()
    touching[inner] = 0
    return np.isin(cores, np.setdiff1d(touching, [0]))


def _body(coarse: np.ndarray, steps_mm: tuple[float, ...]) -> np.ndarray:
    """Convex hull in each slice of the largest piece of soft tissue; the table is another piece."""
    labels = measure.label(_depth(coarse >= _LUNG_HU, steps_mm) > _LEAK_MM, connectivity=1)
    sizes = np.bincount(labels.ravel(), minlength=2)
    tissue = labels == 1 + sizes[1:].argmax()
    return np.stack([morphology.convex_hull_image(t) if t.sum() > 99 else t for t in tissue])


def _two_largest(air: np.ndarray, coarse: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The two largest components that are lung: in the body, not void as gas in the stomach."""
    labels = measure.label(air, connectivity=1)
    sizes = np.bincount(labels.ravel())[1:]
    largest = (1 + sizes.argsort()[::-1][:16]).tolist()
    hu = ndimage.median(coarse, labels, largest)
    inside = ndimage.mean(body, labels, largest)
    lungs = [n for n, h, i in zip(largest, hu, inside) if h > _VOID_HU and i > 0.5][:2]
    kept = [label for label in lungs if sizes[label - 1] >= _SECOND_LUNG * sizes[lungs[0] - 1]]
    return np.isin(labels, kept)


def _closed(mask: np.ndarray, steps_mm: tuple[float, ...]) -> np.ndarray:
    """Morphological closing with a ball of 10 mm; beyond the volume lies no lung."""
    pad = [(1 + int(_CLOSING_MM / step),) * 2 for step in steps_mm]
    dilated = _depth(~np.pad(mask, pad), steps_mm) <= _CLOSING_MM
    closed = _depth(dilated, steps_mm) > _CLOSING_MM
    return mask | closed[tuple(slice(before, -after) for before, after in pad)]


def _filled(mask: np.ndarray, steps_mm: tuple[float, ...]) -> np.ndarray:
    """Fill holes of the volume, and those of a slice unless they are as large as the heart."""
    mask = ndimage.binary_fill_holes(mask)
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[[0, 2]] = False
    holes, _ = ndimage.label(ndimage.binary_fill_holes(mask, in_plane) & ~mask, in_plane)
    areas_mm2 = np.bincount(holes.ravel()) * steps_mm[1] * steps_mm[2]
    return mask | ((holes > 0) & (areas_mm2 < _HOLE_MM2)[holes])


def _depth(mask: np.ndarray, steps_mm: tuple[float, ...]) -> np.ndarray:
    """Distance in mm of each voxel in the mask to the nearest outside it, 0 outside."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return ndimage.distance_transform_edt(mask, sampling=steps_mm)


def _pooled(volume: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means of blocks, float32; the last blocks are completed with edge values."""
    pad = [(0, -size % factor) for size, factor in zip(volume.shape, factors)]
    return measure.block_reduce(
        np.pad(volume, pad, mode="edge"), factors, np.mean, func_kwargs={"dtype": np.float32}
    )


def _repeated(mask: np.ndarray, factors: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    for axis, factor in enumerate(factors):
        mask = mask.repeat(factor, axis)
    return np.ascontiguousarray(mask[tuple(slice(size) for size in shape)])
