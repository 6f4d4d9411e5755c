"""Several models, or one model on turned and mirrored slices: their mean and their deviation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.intensity import clinical_intensity, to_hu
from mmsr_jax.inference.memory import Plan
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.tiles import Window, bounding_window, super_resolve_slices


class Turn(NamedTuple):
    """A symmetry of the square: quarter turns of the (rows, columns) axes, then a reflection."""

    quarters: int
    mirrored: bool

    def apply(self, planes: np.ndarray) -> np.ndarray:
        """Turn (n, rows, columns); a view."""
        turned = np.rot90(planes, self.quarters, axes=(1, 2))
        return turned[..., ::-1] if self.mirrored else turned

    def undo(self, planes: np.ndarray) -> np.ndarray:
        """The inverse of `apply`."""
        return np.rot90(planes[..., ::-1] if self.mirrored else planes, -self.quarters, axes=(1, 2))

    def of_window(self, window: Window, within: tuple[int, int]) -> Window:
        """Where a window of a slice lies in the turned slice."""
        inside = np.zeros((1, *within), bool)
        window.of(inside)[...] = True
        return bounding_window(self.apply(inside)[0])


AS_IT_IS = Turn(0, False)
ALL_TURNS = tuple(Turn(quarters, mirrored) for mirrored in (False, True) for quarters in range(4))


def check_alike(models: Sequence[SuperResolver]) -> None:
    """Check that models can be averaged.

    Raises:
      UserError: they have several scales or windows of Hounsfield units.
    """
    windows = sorted({model.window_hu for model in models})
    if len(windows) > 1:
        raise UserError(
            f"the models have windows of {' and '.join(map(str, windows))} HU; give models of one"
        )
    scales = sorted({model.scale for model in models})
    if len(scales) > 1:
        raise UserError(
            f"the models have scales of {' and '.join(map(str, scales))}; give models of one scale"
        )


class Ensemble(NamedTuple):
    """Members: every model on every turn.

    Attributes:
      models: of one scale and window.
      plans: of each model, for the slices at hand.
      turns: of the slices.
      place: puts a batch on the devices.
    """

    models: Sequence[SuperResolver]
    plans: Sequence[Plan]
    turns: Sequence[Turn]
    place: Callable[[Any], Any]

    @property
    def members(self) -> int:
        """How many predictions are averaged."""
        return len(self.models) * len(self.turns)

    def super_resolve(
        self, hu: np.ndarray, window: Window, wanted: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Super-resolve a part of slices.

        Args:
          hu: (n, rows, columns) in Hounsfield units.
          window: the part.
          wanted: bool, of the window's shape, or all of it.

        Returns:
          Mean over the members, (n, s·rows, s·columns) float32 in Hounsfield units, and their
          standard deviation (of the population), None for a single member; NaN where not wanted.
        """
        mean: np.ndarray | None = None
        squares: np.ndarray | None = None
        for count, sr in enumerate(self._predictions(hu, window, wanted), start=1):
            if mean is None:
                mean = sr
                continue
            squares = np.zeros_like(sr) if squares is None else squares
            change = sr - mean
            mean += change / count
            squares += change * (sr - mean)
        assert mean is not None
        return mean, None if squares is None else np.sqrt(squares / self.members)

    def _predictions(self, hu: np.ndarray, window: Window, wanted: np.ndarray | None) -> Any:
        for model, plan in zip(self.models, self.plans, strict=True):
            images = clinical_intensity(model.window_hu).normalise(hu)
            for turn in self.turns:
                sr = super_resolve_slices(
                    plan.network,
                    turn.apply(images),
                    tile_px=plan.tile_px,
                    window=turn.of_window(window, hu.shape[1:]),
                    wanted=None if wanted is None else turn.apply(wanted[None])[0],
                    place=self.place,
                )
                yield to_hu(turn.undo(sr), model.window_hu)
