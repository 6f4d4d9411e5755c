"""One case of the preparation: read, mask, normalise, sample, and leave patches in .npy files."""

import dataclasses
from pathlib import Path

import numpy as np
from skimage import transform

from data_pipelines import geometry, intensity, lung_mask, patch_sampling, volumes
from data_pipelines.dataset_card import DOMAINS, SPLITS, CaseCard
from data_pipelines.errors import UserError
from data_pipelines.hounsfield import check_hounsfield
from data_pipelines.intensity import Intensity
from data_pipelines.patch_sampling import Sampled, take_patch

LEAST_NORMALISED_STD = 0.02  # 14 HU in the lung window; less is nearly constant
BOTH = "both"
_PREVIEW_PATCHES = 8
_HISTOGRAM = np.linspace(-1.0, 1.0, 51)  # wider than the steps of 8-bit images


@dataclasses.dataclass(frozen=True)
class DomainOptions:
    """How the volumes of one domain are read and sampled.

    Attributes:
        patch_px: height and width of a patch.
        mask: "lung", "specimen" or "none".
        hounsfield: values are Hounsfield units and the window is fixed; the anchors are unused.
        series: SeriesInstanceUID, for folders with several DICOM series.
        spacing_mm: (x, y, z), for files that say none, as TIFF.
        inverted: tissue is darker than air.
        air: value of air; estimated if None.
        tissue: value of soft tissue; estimated if None.
        any_plane: sample in all three planes of cubic voxels, not only the axial one.
        resample_um: pixel size to resample to, in micrometres; None keeps the pixels.
    """

    patch_px: int
    mask: str
    hounsfield: bool = False
    series: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    inverted: bool = False
    air: float | None = None
    tissue: float | None = None
    any_plane: bool = False
    resample_um: float | None = None


@dataclasses.dataclass(frozen=True)
class CaseTask:
    """One case to stage.

    Attributes:
        domain: "clinical" or "micro".
        index: of the case in its domain.
        path: of the volume.
        patches: split -> number of patches; both splits divide the case by axial slices. The
            split of a whole case is drawn later, of the cases that can be staged.
        validation_fraction: of the slices, for a case that serves both splits.
        seed: of the dataset.
        directory: where the staged files go.
        options: of the domain.
    """

    domain: str
    index: int
    path: Path
    patches: dict[str, int]
    validation_fraction: float
    seed: int
    directory: Path
    options: DomainOptions


@dataclasses.dataclass(frozen=True)
class StagedPatches:
    """Patches of one case and split that wait in .npy files to be written.

    Attributes:
        case: index of the case in its domain.
        split: "train" or "validation".
        patches: file of (n, p, p), int16 or uint16.
        positions: file of (n, 4) int32: plane, slice, row, column.
    """

    case: int
    split: str
    patches: Path
    positions: Path


@dataclasses.dataclass(frozen=True)
class StagedCase:
    """What a case became; `preview` is the .npz that the sheet draws, `dtype` the stored one."""

    card: CaseCard
    dtype: str
    staged: tuple[StagedPatches, ...]
    preview: Path

    def serving(self, split: str, index: int) -> "StagedCase":
        """The same case, which gives its patches to one split, and its index in the domain."""
        count = sum(self.card.patches.values())
        patches = {name: count if name == split else 0 for name in SPLITS}
        return dataclasses.replace(
            self,
            card=dataclasses.replace(self.card, split=split, patches=patches),
            staged=tuple(dataclasses.replace(p, case=index, split=split) for p in self.staged),
        )


def stage_case(task: CaseTask) -> StagedCase:
    """Do the whole work of one case, in this process.

    Raises:
        UserError: the volume cannot be read, is smaller than a patch, has no lung, no contrast,
            or too few valid positions.
    """
    options = task.options
    volume = _read(task)
    array, spacing_mm = volume.array, volume.geometry.spacing_mm
    mask = _mask(array, spacing_mm, options, str(task.path))
    levels = _intensity(array, options, str(task.path))
    rng = np.random.default_rng([task.seed, DOMAINS.index(task.domain), task.index])
    ranges = _slice_ranges(task, array.shape, mask)
    least_std = (
        LEAST_NORMALISED_STD * abs(levels.tissue - levels.air) / (intensity.TISSUE - intensity.AIR)
    )
    sampled = {
        split: _sample(task, array, mask, split, ranges[split], rng, least_std) for split in ranges
    }
    offset, step, dtype = _storage(array, task.domain)
    staged = tuple(
        _stage(task, array, split, found.positions, (offset, step, dtype))
        for split, found in sampled.items()
    )
    card = CaseCard(
        name=task.path.name,
        shape_px=array.shape,
        spacing_mm=spacing_mm,
        split=BOTH if len(ranges) > 1 else next(iter(ranges)),
        validation_from_slice=ranges["validation"].start if len(ranges) > 1 else None,
        air=levels.air,
        tissue=levels.tissue,
        tissue_level=intensity.TISSUE,
        anchor_method=levels.method,
        stored_offset=offset,
        stored_step=step,
        patches={split: task.patches.get(split, 0) for split in SPLITS},
        valid_positions=sum(found.valid_positions for found in sampled.values()),
        rejected={
            reason: sum(found.rejected[reason] for found in sampled.values())
            for reason in (patch_sampling.LEAVES_MASK, patch_sampling.NEARLY_CONSTANT)
        },
    )
    positions = np.concatenate([found.positions for found in sampled.values()])
    preview = _preview(task, array, mask, levels, positions)
    return StagedCase(card, np.dtype(dtype).name, staged, preview)


def _read(task: CaseTask) -> geometry.Volume:
    options = task.options
    volume = volumes.read_volume(
        task.path,
        series=options.series,
        spacing_mm=options.spacing_mm,
        remedy=f"give --{task.domain}-spacing=x,y,z",
    )
    if options.hounsfield:
        check_hounsfield(volume.array, str(task.path))
        volume = geometry.axial(volume)
    if options.resample_um is not None:
        volume = _resampled(volume, options.resample_um / 1000, options.any_plane, str(task.path))
    x, y, z = volume.geometry.spacing_mm
    if options.any_plane and max(x, y, z) > 1.01 * min(x, y, z):
        raise UserError(
            f"{task.path} has voxels of {x:g} x {y:g} x {z:g} mm; "
            "sampling in any plane needs cubic ones"
        )
    _check_size(task, volume.array.shape)
    return volume


def _check_size(task: CaseTask, shape: tuple[int, ...]) -> None:
    """Check that a patch fits into one plane at least."""
    patch_px = task.options.patch_px
    rows, columns = sorted(shape)[1:] if task.options.any_plane else shape[1:]
    if min(rows, columns) < patch_px:
        raise UserError(
            f"{task.path} has slices of {columns} x {rows} pixels, too few for {task.domain} "
            f"patches of {patch_px} x {patch_px}; give a smaller --clinical-patch"
        )


def _resampled(
    volume: geometry.Volume, pixel_mm: float, all_axes: bool, name: str
) -> geometry.Volume:
    """Larger pixels, low-pass filtered first; slices are only merged if `all_axes`."""
    array, spacing_mm = volume.array, volume.geometry.spacing_mm
    if pixel_mm < min(spacing_mm[:2]):
        raise UserError(
            f"{name} has pixels of {1000 * min(spacing_mm[:2]):g} um, coarser than "
            f"--resample_um={1000 * pixel_mm:g}; give a larger value"
        )
    factors = [pixel_mm / step for step in spacing_mm[::-1]]
    if not all_axes:
        factors[0] = 1.0
    shape = tuple(
        max(1, round(size / factor)) for size, factor in zip(array.shape, factors, strict=True)
    )

    def resize(part: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        smooth = transform.resize(
            part.astype(np.float32), size, order=1, anti_aliasing=True, preserve_range=True
        )
        return (np.rint(smooth) if array.dtype.kind in "iu" else smooth).astype(array.dtype)

    if all_axes:
        finer = resize(array, shape)
    else:
        finer = np.stack([resize(image, shape[1:]) for image in array])
    new_mm = tuple(
        step * old / new
        for step, old, new in zip(spacing_mm, array.shape[::-1], shape[::-1], strict=True)
    )
    return geometry.Volume(finer, dataclasses.replace(volume.geometry, spacing_mm=new_mm))


def _mask(
    array: np.ndarray, spacing_mm: geometry.Triple, options: DomainOptions, name: str
) -> np.ndarray | None:
    if options.mask == "lung":
        return lung_mask.lung_mask(array, spacing_mm, name)
    if options.mask == "specimen":
        return lung_mask.specimen_mask(array, air_is_dark=not options.inverted)
    return None


def _intensity(array: np.ndarray, options: DomainOptions, name: str) -> Intensity:
    if options.hounsfield:
        return intensity.clinical_intensity()
    if options.air is not None and options.tissue is not None:
        return Intensity(options.air, options.tissue, "given")
    try:
        return intensity.estimate_anchors(array, inverted=options.inverted)
    except ValueError as error:
        raise UserError(f"{name} has no contrast ({error}); leave the case out") from error


def _slice_ranges(
    task: CaseTask, shape: tuple[int, ...], mask: np.ndarray | None
) -> dict[str, range]:
    """The axial slices of each split that the case serves."""
    if len(task.patches) == 1:
        return {next(iter(task.patches)): range(shape[0])}
    # The last slices of a chest scan may lie above the lungs, so only usable ones are divided.
    usable = patch_sampling.usable_slices(shape, mask, task.options.patch_px)
    if len(usable) < 2:
        raise UserError(
            f"{task.path} is the only {task.domain} case and {len(usable)} of its slices "
            "hold a patch, so that none is left for validation; give more slices or cases"
        )
    kept = max(1, round(task.validation_fraction * len(usable)))
    first = int(usable[-min(kept, len(usable) - 1)])
    return {"train": range(first), "validation": range(first, shape[0])}


def _sample(
    task: CaseTask,
    array: np.ndarray,
    mask: np.ndarray | None,
    split: str,
    slices: range,
    rng: np.random.Generator,
    least_std: float,
) -> Sampled:
    part = slice(slices.start, slices.stop)
    found = patch_sampling.sample_positions(
        array[part],
        None if mask is None else mask[part],
        task.options.patch_px,
        task.patches[split],
        rng,
        least_std=least_std,
        name=str(task.path),
        planes=patch_sampling.ANY_PLANE if task.options.any_plane else patch_sampling.AXIAL,
    )
    # Axial patches count z in the slice, the others in the row.
    plane = found.positions[:, 0]
    found.positions[np.arange(len(plane)), np.where(plane == 0, 1, 2)] += slices.start
    return found


def _storage(array: np.ndarray, domain: str) -> tuple[float, float, type]:
    """(offset, step, dtype) with value = stored * step + offset."""
    if domain == "clinical" or array.dtype == np.int16:
        return 0.0, 1.0, np.int16  # float Hounsfield units are rounded to whole ones
    if array.dtype.kind == "u":
        return 0.0, 1.0, np.uint16
    low, high = float(array.min()), float(array.max())
    return low, (high - low) / 65535 or 1.0, np.uint16


def _stage(
    task: CaseTask,
    array: np.ndarray,
    split: str,
    positions: np.ndarray,
    storage: tuple[float, float, type],
) -> StagedPatches:
    offset, step, dtype = storage
    stem = f"{task.domain}_{task.index:04d}_{split}"
    staged = StagedPatches(
        task.index,
        split,
        task.directory / f"{stem}_patches.npy",
        task.directory / f"{stem}_positions.npy",
    )
    limits = np.iinfo(dtype)
    shape = (len(positions), task.options.patch_px, task.options.patch_px)
    out = np.lib.format.open_memmap(staged.patches, mode="w+", dtype=dtype, shape=shape)
    for index, position in enumerate(positions):
        patch = take_patch(array, position, task.options.patch_px)
        if array.dtype != dtype:
            patch = np.rint((patch.astype(np.float64) - offset) / step)
            patch = patch.clip(limits.min, limits.max)
        out[index] = patch
    out.flush()
    np.save(staged.positions, positions)
    return staged


def _preview(
    task: CaseTask,
    array: np.ndarray,
    mask: np.ndarray | None,
    levels: Intensity,
    positions: np.ndarray,
) -> Path:
    """Save what the sheet shows: the axial slice with most patches, patches, a histogram."""
    size = task.options.patch_px
    axial = positions[positions[:, 0] == 0]
    index = int(np.bincount(axial[:, 1]).argmax()) if len(axial) else array.shape[0] // 2
    histogram = np.zeros(len(_HISTOGRAM) - 1, np.int64)
    for position in positions:
        histogram += np.histogram(levels.normalise(take_patch(array, position, size)), _HISTOGRAM)[
            0
        ]
    shown = [levels.normalise(take_patch(array, p, size)) for p in positions[:_PREVIEW_PATCHES]]
    path = task.directory / f"{task.domain}_{task.index:04d}_preview.npz"
    np.savez(
        path,
        image=levels.normalise(array[index]).astype(np.float16),
        mask=np.ones(array.shape[1:], bool) if mask is None else mask[index],
        corners=axial[axial[:, 1] == index, 2:],
        slice_index=index,
        patches=np.array(shown, np.float16),
        histogram=histogram,
    )
    return path
