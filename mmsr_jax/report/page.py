"""The self-contained HTML page of a run or a comparison: one file, nothing from the network."""

import base64
import dataclasses
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from data_pipelines.intensity import to_hu

_SVG: Any = {"svg.hashsalt": "mmsr-jax", "svg.fonttype": "none", "font.size": 9}
_SVG["text.parse_math"] = False  # a name is no formula
_LOG_ABOVE = 30.0  # largest over smallest value of a panel with a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Picture:
    """One slice or region, every way: images by name, (rows, columns) in [-1, 1], of one shape."""

    title: str
    images: dict[str, np.ndarray]
    pixel_mm: float


@dataclasses.dataclass(frozen=True)
class Curves:
    """One panel: (steps, values) by legend."""

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Formatted cells by the name of their row; the caption says what they mean."""

    title: str
    caption: str
    columns: list[str]
    rows: dict[str, list[str]]


def write_page(
    path: Path,
    *,
    title: str,
    window_hu: tuple[float, float],
    pictures: Sequence[Picture],
    regions: Sequence[Picture],
    curves: Sequence[Curves],
    tables: Sequence[Table],
    config: str,
) -> None:
    """Write the page, whole or not at all.

    Args:
      path: file to write or replace.
      title: of the page.
      window_hu: what [-1, 1] of the images stands for; the first window shown.
      pictures: for the viewer, at least one with at least two images.
      regions: for the gallery, a row each.
      curves: of the training.
      tables: of the evaluation.
      config: text of the configuration.
    """
    environment = Environment(loader=PackageLoader("mmsr_jax.report", "."), autoescape=True)
    data = {
        "window": list(window_hu),
        "pictures": [_encoded(picture, window_hu) for picture in pictures],
        "regions": [_encoded(picture, window_hu) for picture in regions],
    }
    html = environment.get_template("page.html.jinja").render(
        title=title,
        window_hu=window_hu,
        # "<" would end the script element; as an escape it means the same in JSON.
        data=json.dumps(data).replace("<", "\\u003c"),
        regions=regions,
        curves=[(panel.title, _plot(panel)) for panel in curves],
        tables=tables,
        config=config,
    )
    partial = path.with_suffix(".partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)


def _encoded(picture: Picture, window_hu: tuple[float, float]) -> dict[str, Any]:
    """A picture for the script: its images as deflated little-endian int16 Hounsfield units."""
    first = next(iter(picture.images.values()))
    return {
        "title": picture.title,
        "rows": first.shape[0],
        "columns": first.shape[1],
        "pixelMm": picture.pixel_mm,
        "images": [
            {"name": name, "data": base64.b64encode(zlib.compress(hu, 9)).decode()}
            for name, hu in (
                (name, np.rint(to_hu(image, window_hu)).astype("<i2").tobytes())
                for name, image in picture.images.items()
            )
        ],
    }


def _plot(panel: Curves) -> str:
    """An SVG element."""
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(4, 2.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for name, (steps, values) in panel.series.items():
            axes.plot(steps, values, label=name, linewidth=1.2)
        axes.set_title(panel.title)
        axes.grid(alpha=0.3)
        every = np.array([value for _, values in panel.series.values() for value in values])
        if every.size and every.min() > 0 and every.max() > _LOG_ABOVE * every.min():
            axes.set_yscale("log")
        if len(panel.series) > 1:
            axes.legend(fontsize=7)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
