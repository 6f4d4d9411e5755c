"""The end of a run: its held-out scans super-resolved, scored against their truth, and shown."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from data_pipelines import volumes
from data_pipelines.dataset_card import DatasetCard
from data_pipelines.geometry import Volume
from data_pipelines.intensity import clinical_intensity
from mmsr_jax.evaluation.ground_truth import Scores, score
from mmsr_jax.evaluation.interpolation import bicubic, nearest
from mmsr_jax.inference.model import SuperResolver, load_model

_HEADINGS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "edge_strength": "edges",
    "edge_alignment": "edges in place",
    "bias": "bias",
    "consistency_psnr": "consistency dB",
    "consistency_correlation": "correlation",
    "grid_db": "grid dB",
}


@dataclasses.dataclass(frozen=True)
class _Slice:
    """One slice in [-1, 1], every way."""

    clinical: np.ndarray  # (rows, columns)
    micro: np.ndarray  # (s·rows, s·columns)
    images: dict[str, np.ndarray]  # by method, shaped like micro


def report_held_out(run: Path, dataset: Path, card: DatasetCard) -> str:
    """Super-resolve the held-out scans of a dataset with a run's last checkpoint.

    Writes into the run directory: `held_out.json` with the scores of every slice,
    `comparison.png`, and the first scan's super-resolved volume.

    Returns:
      A table of mean ± standard deviation over slices, and the paths of what was written.
    """
    model = load_model(run)
    output = run / "super_resolved.nii.gz"
    scores: dict[str, list[Scores]] = {}
    shown = []
    for index, scan in enumerate(card.held_out):
        clinical = volumes.read_volume(dataset / scan.clinical)
        micro = volumes.read_volume(dataset / scan.micro)
        fine = model.volume(clinical)
        if index == 0:
            volumes.write_volume(fine, output, overwrite=True)
        slices = _slices(model, clinical, micro, fine)
        shown.append(slices[0])
        for one in slices:
            for name, image in one.images.items():
                result = score(one.clinical, one.micro, image)
                scores.setdefault(name, []).append(result)
    figure = run / "comparison.png"
    _comparison(shown[:3], model.scale).savefig(figure)
    values = {name: [dataclasses.asdict(one) for one in ones] for name, ones in scores.items()}
    (run / "held_out.json").write_text(json.dumps(values, indent=2) + "\n")
    return f"{_table(values)}\nfigure: {figure}\nsuper-resolved volume: {output}"


def _slices(
    model: SuperResolver,
    clinical: Volume,
    micro: Volume,
    fine: Volume,
) -> list[_Slice]:
    normalise = clinical_intensity(model.window_hu).normalise
    return [
        _Slice(
            clinical=normalise(scan),
            micro=normalise(truth),
            images={
                "SR": normalise(sr),
                "bicubic": bicubic(normalise(scan), model.scale),
                "nearest": nearest(normalise(scan), model.scale),
            },
        )
        for scan, truth, sr in zip(clinical.array, micro.array, fine.array, strict=True)
    ]


def _table(values: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over slices; a row for each method."""
    width = 16
    header = "".join(f"{heading:>{width}}" for heading in _HEADINGS.values())
    lines = [
        "Held-out scans against their truth. PSNR and SSIM for a data range of 2",
        "(the clinical window as [-1, 1]); edges: 1 is the truth; consistency: with the scan.",
        f"{'':10}{header}",
    ]
    for name, of_slices in values.items():
        cells = []
        for key in _HEADINGS:
            column = np.array([one[key] for one in of_slices])
            known = column[~np.isnan(column)]  # a slice without structures has no edges
            cell = f"{known.mean():.3f} ± {known.std():.3f}" if known.size else "none"
            cells.append(f"{cell:>{width}}")
        lines.append(f"{name:10}{''.join(cells)}")
    return "\n".join(lines)


def _comparison(shown: list[_Slice], scale: int) -> Figure:
    """Rows: scans; columns: clinical, bicubic, SR, truth, of the busiest square."""
    columns = ("clinical", "bicubic", "SR", "truth (micro)")
    figure = Figure(figsize=(3 * len(columns), 3.15 * len(shown)), dpi=128, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        top, left, size = _busiest_square(one)
        coarse = (slice(top, top + size), slice(left, left + size))
        fine = tuple(slice(scale * part.start, scale * part.stop) for part in coarse)
        pictures = (
            one.clinical[coarse],
            one.images["bicubic"][fine],
            one.images["SR"][fine],
            one.micro[fine],
        )
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    return figure


def _busiest_square(one: _Slice, size: int = 32) -> tuple[int, int, int]:
    """(top, left, side) of the square of the scan with the most contrast."""
    side = min(size, *one.clinical.shape)
    mean, mean_square = (ndimage.uniform_filter(one.clinical**power, side) for power in (1, 2))
    half = side // 2
    inner = tuple(slice(half, extent - side + half + 1) for extent in one.clinical.shape)
    contrast = (mean_square - mean**2)[inner]
    top, left = np.unravel_index(contrast.argmax(), contrast.shape)
    return int(top), int(left), side
