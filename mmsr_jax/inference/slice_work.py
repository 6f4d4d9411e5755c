"""The slices of a scan on their way from its file through the models to the outputs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.slices import SliceReader
from data_pipelines.writers import SliceWriter
from mmsr_jax.inference.ensemble import Ensemble
from mmsr_jax.inference.finishing import Finishing
from mmsr_jax.inference.region import Box, Mask
from mmsr_jax.inference.tiles import Window


class Writers(NamedTuple):
    """Of every output of a scan."""

    fine: SliceWriter
    disagreement: SliceWriter
    deviation: SliceWriter | None


class Batch(NamedTuple):
    """Slices that are computed at once.

    Attributes:
      indices: in the scan; the last may be repeated, so that all batches have one size.
      hu: (n, rows, columns).
      masks: bool, (n, rows, columns) of the box; None: everything.
    """

    indices: Sequence[int]
    hu: np.ndarray
    masks: np.ndarray | None


class Predicted(NamedTuple):
    """What the models gave for a batch, in the focus; None if no mask has a pixel there."""

    batch: Batch
    sr: np.ndarray | None
    deviation: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class SliceWork:
    """The three stages of `mmsr_jax.inference.pipeline.overlap`.

    Attributes:
      reader: of the scan.
      box: what becomes the output.
      focus: the part of the box's window that the models see to.
      mask: where their output is wanted; None: in the whole box.
      ensemble: the models.
      finishing: what is done with their output.
      writers: of the outputs, once they are laid out.
    """

    reader: SliceReader
    box: Box
    focus: Window
    mask: Mask | None
    ensemble: Ensemble
    finishing: Finishing
    writers: Writers | None = None

    def batches(self, slices: Sequence[int], size: int) -> list[list[int]]:
        """Indices of `size` slices each; the last one fills up the last batch."""
        starts = range(0, len(slices), size)
        parts = [list(slices[start : start + size]) for start in starts]
        return [part + [part[-1]] * (size - len(part)) for part in parts]

    def read(self, indices: Sequence[int]) -> Batch:
        """The scan's slices and the mask's."""
        hu = np.stack([self.reader.read(index) for index in indices])
        if self.mask is None:
            return Batch(indices, hu, None)
        masks = np.stack([self.mask(index) for index in indices])
        return Batch(indices, hu, self.box.window.of(masks))

    def compute(self, batch: Batch) -> Predicted:
        """The models' output."""
        wanted = None
        if batch.masks is not None:
            wanted = self.focus.relative_to(self.box.window).of(np.any(batch.masks, axis=0))
            if not wanted.any():
                return Predicted(batch, None, None)
        sr, deviation = self.ensemble.super_resolve(batch.hu, self.focus, wanted)
        return Predicted(batch, sr, deviation)

    def write(self, predicted: Predicted) -> dict[int, dict[str, float]]:
        """Finish and write every slice; its figures, by its index."""
        batch, writers = predicted.batch, self.writers
        assert writers is not None
        figures: dict[int, dict[str, float]] = {}
        for place, index in enumerate(batch.indices):
            if index in figures:
                continue
            finished = self.finishing.finish(
                batch.hu[place],
                self.box.window,
                None if batch.masks is None else batch.masks[place],
                self._in_box(predicted.sr, place),
                self._in_box(predicted.deviation, place),
            )
            target = index - self.box.slices.start
            writers.fine.write(target, finished.fine)
            writers.disagreement.write(target, finished.disagreement)
            if writers.deviation is not None:
                none = np.zeros_like(finished.fine)  # of a slice in which nothing was computed
                deviation = none if finished.deviation is None else finished.deviation
                writers.deviation.write(target, deviation)
            figures[index] = finished.figures
        return figures

    def all_writers(self) -> Iterator[SliceWriter]:
        """Those that there are."""
        return (writer for writer in self.writers or () if writer is not None)

    def _in_box(self, focused: np.ndarray | None, place: int) -> np.ndarray | None:
        """One plane of the focus in a plane of the box, NaN around it."""
        if focused is None:
            return None
        if self.focus == self.box.window:
            return focused[place]
        scale = self.finishing.scale
        plane = np.full([scale * side for side in self.box.window.shape], np.nan, np.float32)
        self.focus.relative_to(self.box.window).of(plane, scale)[...] = focused[place]
        return plane
