"""Tables of an evaluation, for the terminal and for pages."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmsr_jax.evaluation.sections import Section

# Metric → its heading, in the order of the columns.
HEADINGS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "edge_strength": "edges",
    "edge_alignment": "edges in place",
    "bias": "bias",
    "wall_error": "wall error",
    "lumen_error": "lumen error",
    "lost": "airways lost",
    "contrast_recovery": "nodule contrast",
    "recalled": "nodules recalled",
    "persisted": "nodules invented",
    "false_per_mm2": "false /mm²",
    "missing_per_mm2": "missing /mm²",
    "shift_psnr": "shift dB",
    "noise_psnr": "noise dB",
    "sliced_wasserstein": "Wasserstein",
    "spectrum_decades": "spectrum dec.",
    "grid_db": "grid dB",
    "histogram_hu": "histogram HU",
    "consistency_psnr": "consistency dB",
    "consistency_ssim": "consist. SSIM",
    "consistency_mae_hu": "MAE HU",
    "correlation": "correlation",
    "contrast": "contrast",
    "drift_px": "drift px",
}
LEGEND = "Mean ± standard deviation over cases."


def columns(section: Section) -> list[str]:
    """The metrics of a section, in order."""
    present = {name for cases in section.methods.values() for case in cases for name in case}
    return [name for name in HEADINGS if name in present]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Over the finite values, NaN if there is none; the deviation of a sample, NaN of one value."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not known.size:
        return math.nan, math.nan
    return float(known.mean()), float(known.std(ddof=1)) if known.size > 1 else math.nan


def cell(values: Sequence[float]) -> str:
    """Mean ± deviation, the mean alone of one value, or a dash of none."""
    mean, deviation = mean_and_deviation(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def rows(section: Section) -> dict[str, list[str]]:
    """Method → a cell for each of `columns`."""
    names = columns(section)
    return {
        method: [cell([case[name] for case in cases if name in case]) for name in names]
        for method, cases in section.methods.items()
    }


def text_table(section: Section) -> str:
    """A section for the terminal."""
    headings = [HEADINGS[name] for name in columns(section)]
    return f"{section.title}\n  {section.note}\n{_aligned(headings, rows(section))}"


def _aligned(headings: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    lines = [["", *headings], *([name, *row] for name, row in cells.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(f"  {text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
