"""The sheet of a dataset: one picture that shows a wrong mask or mismatched intensities."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from data_pipelines.dataset_card import DOMAINS, CaseCard, DatasetCard

_CASES = 4  # shown a domain
_PATCHES = 8  # shown a domain
_BOXES = 25  # drawn in a slice
_NAME = 44  # characters of a case's name
_HEIGHTS = {1: 9.0, 2: 9.0, 3: 7.0, 4: 5.9}  # inches of a row of slices, by their number
_COLOURS = {"clinical": "tab:blue", "micro": "tab:orange"}


def draw(card: DatasetCard, previews: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write the sheet as PNG.

    Args:
        card: of the dataset.
        previews: domain -> one .npz a case, as `stage_case` leaves them.
        path: of the picture.
    """
    columns = min(_CASES, max(len(files) for files in previews.values()))
    figure = Figure(figsize=(16, 9.4 + 2 * _HEIGHTS[columns]), layout="constrained")
    FigureCanvasAgg(figure)
    heights = (_HEIGHTS[columns], _HEIGHTS[columns], 5.2, 4.2)
    grid = figure.subfigures(4, 1, squeeze=False, height_ratios=heights, hspace=0.03)
    parts = list(grid[:, 0])
    for part, name in zip(parts[:2], DOMAINS, strict=True):
        _draw_slices(part, columns, name, card.domain(name).cases, previews[name])
    _draw_patches(parts[2], previews)
    _draw_histograms(parts[3], card, previews)
    figure.savefig(path, dpi=90)


def _draw_slices(
    part: SubFigure,
    columns: int,
    name: str,
    cases: Sequence[CaseCard],
    previews: Sequence[Path],
) -> None:
    part.suptitle(
        f"{name}: outline of the mask (red), up to {_BOXES} patches taken in this slice (yellow)",
        fontsize=14,
    )
    shown = np.unique(np.linspace(0, len(cases) - 1, min(columns, len(cases))).round().astype(int))
    axes = part.subplots(1, columns, squeeze=False)[0]
    for ax, index in zip(axes[: len(shown)], shown, strict=True):
        preview = dict(np.load(previews[index]))
        _draw_slice(ax, preview)
        ax.set_title(_caption(cases[index], int(preview["slice_index"])), fontsize=10)
    for ax in axes:
        ax.set_axis_off()


def _caption(case: CaseCard, slice_index: int) -> str:
    name = case.name if len(case.name) <= _NAME else case.name[: _NAME - 3] + "..."
    split = case.split
    if case.validation_from_slice is not None:
        split = f"train, validation from slice {case.validation_from_slice}"
    rejected = "; ".join(f"{number} {reason}" for reason, number in case.rejected.items())
    return (
        f"{name}\nslice {slice_index} of {case.shape_px[0]}; {split}\n"
        f"{sum(case.patches.values())} patches of {case.valid_positions} positions\n{rejected}"
    )


def _draw_slice(ax: Axes, preview: dict[str, np.ndarray]) -> None:
    image, mask = preview["image"].astype(np.float32), preview["mask"]
    ax.imshow(image, cmap="gray", vmin=-1, vmax=1)
    if not mask.all():
        ax.contour(mask, levels=[0.5], colors="red", linewidths=0.8)
    size = int(preview["patches"].shape[-1])
    for row, column in preview["corners"][:_BOXES]:
        ax.add_patch(
            Rectangle((column, row), size, size, fill=False, edgecolor="yellow", linewidth=0.8)
        )


def _draw_patches(part: SubFigure, previews: Mapping[str, Sequence[Path]]) -> None:
    part.suptitle("patches as the networks see them: black -1, white 1, in both rows", fontsize=14)
    for row, name in zip(part.subplots(len(DOMAINS), _PATCHES), DOMAINS, strict=True):
        files = previews[name]
        for column, ax in enumerate(row):
            ax.set_axis_off()
            patches = np.load(files[column % len(files)])["patches"]
            index = column // len(files)
            if index < len(patches):
                ax.imshow(patches[index].astype(np.float32), cmap="gray", vmin=-1, vmax=1)
        row[0].set_title(name, loc="left", fontsize=11, color=_COLOURS[name])


def _draw_histograms(
    part: SubFigure, card: DatasetCard, previews: Mapping[str, Sequence[Path]]
) -> None:
    part.suptitle(
        "patch intensities of both domains: air and tissue should lie at the same places",
        fontsize=14,
    )
    ax = part.subplots()
    for name in DOMAINS:
        counts = np.array([np.load(file)["histogram"] for file in previews[name]], float)
        density = counts.sum(0) / counts.sum() * counts.shape[1] / 2
        edges = np.linspace(-1, 1, counts.shape[1] + 1)
        ax.stairs(density, edges, label=_legend(name, card), color=_COLOURS[name], linewidth=1.8)
    for level, label in ((-1.0, "air"), (card.micro.cases[0].tissue_level, "soft tissue")):
        ax.axvline(level, color="0.3", linestyle="--", linewidth=1)
        ax.text(level, 1.01, label, transform=ax.get_xaxis_transform(), ha="center", fontsize=11)
    ax.set(xlim=(-1.02, 1.02), xlabel="normalised intensity", ylabel="density")
    ax.legend(fontsize=11)


def _legend(name: str, card: DatasetCard) -> str:
    cases = card.domain(name).cases
    air, tissue = (
        f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"
        for values in ([case.air for case in cases], [case.tissue for case in cases])
    )
    methods = "/".join(sorted({case.anchor_method for case in cases}))
    return f"{name}: air {air}, tissue {tissue} ({methods})"
