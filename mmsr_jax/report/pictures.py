"""Which pictures a report shows, and the figure of its regions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_pipelines.phantom import MICRO_SPACING_MM
from mmsr_jax.evaluation.evaluate_run import Phantoms
from mmsr_jax.evaluation.interpolation import nearest
from mmsr_jax.evaluation.real_images import RealImage
from mmsr_jax.evaluation.sections import TRUTH, SuperResolve
from mmsr_jax.report.page import Picture
from mmsr_jax.report.regions import find_regions

INPUT = "clinical"
_CLINICAL_SIGMAS_PX = tuple(np.geomspace(1, 4, 6))
_MICRO_SIGMAS_PX = tuple(np.geomspace(3, 9, 6))
_REGION_PX = 128  # side, in micro pixels
_CLINICAL_REGION_PX = 32  # side of a region of a scan, in its own pixels


def phantom_pictures(phantoms: Phantoms, count: int) -> list[Picture]:
    """The first phantoms: the scan, every method, the truth."""
    pictures = []
    for index, case in enumerate(phantoms.cases[:count]):
        scale = len(case.micro) // len(case.scan)
        images = {name: ones[index].image for name, ones in phantoms.images.items()}
        images.pop("nearest", None)  # the scan itself is shown with nearest interpolation
        pictures.append(
            Picture(
                f"phantom {index + 1}",
                {INPUT: nearest(case.scan, scale), **images, TRUTH: case.micro},
                MICRO_SPACING_MM,
            )
        )
    return pictures


def scan_pictures(
    methods: dict[str, SuperResolve], scans: Sequence[RealImage], scale: int
) -> list[Picture]:
    """Squares of real scans: the scan and every method."""
    return [
        Picture(
            one.title,
            {
                INPUT: nearest(one.image, scale),
                **{
                    name: method(one.image) for name, method in methods.items() if name != "nearest"
                },
            },
            one.pixel_mm / scale,
        )
        for one in scans
    ]


def regions_of_phantom(picture: Picture) -> list[Picture]:
    """A bronchus, a tumour and a vessel, found in the truth."""
    corners = find_regions(picture.images[TRUTH], sigmas_px=_MICRO_SIGMAS_PX, side_px=_REGION_PX)
    return [_cut(picture, name, corner, _REGION_PX) for name, corner in corners.items()]


def regions_of_scan(picture: Picture, scan: RealImage, scale: int) -> list[Picture]:
    """A bronchus, a tumour-like spot and a vessel, found in the scan itself."""
    corners = find_regions(scan.image, sigmas_px=_CLINICAL_SIGMAS_PX, side_px=_CLINICAL_REGION_PX)
    return [
        _cut(picture, name, (scale * top, scale * left), scale * _CLINICAL_REGION_PX)
        for name, (top, left) in corners.items()
    ]


def _cut(picture: Picture, name: str, corner: tuple[int, int], side: int) -> Picture:
    top, left = corner
    images = {
        method: image[top : top + side, left : left + side]
        for method, image in picture.images.items()
    }
    return Picture(f"{name}, {picture.title}", images, picture.pixel_mm)


def region_figure(regions: Sequence[Picture]) -> Figure:
    """Rows: regions; columns: every image of the first region, by name."""
    names = list(regions[0].images)
    figure = Figure(figsize=(2.4 * len(names), 2.55 * len(regions)), dpi=128, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(regions), len(names), squeeze=False)
    for row, region in zip(axes, regions, strict=True):
        for axis, name in zip(row, names, strict=True):
            axis.set(xticks=[], yticks=[], frame_on=False)
            if name in region.images:
                image = region.images[name]
                axis.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        row[0].set_ylabel(region.title.replace(", ", "\n"), fontsize=9)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=min(12, 260 / len(name)))  # as wide as the image
    return figure
