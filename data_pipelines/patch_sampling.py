"""Where patches are taken: distinct random positions inside a mask that show some structure."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import UserError

LEAVES_MASK = "leaves the mask"
NEARLY_CONSTANT = "nearly constant"
AXIAL = (0,)
ANY_PLANE = (0, 1, 2)
_DRAWS_A_PATCH = 50  # give up when fewer than one position in so many shows structure


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Sampled positions and what was turned down on the way.

    Attributes:
        positions: (count, 4) int32: plane (the array axis across the patch; 0 is axial), slice,
            and first row and column of the patch.
        valid_positions: number of all positions whose patch lies in the mask.
        rejected: number of positions by reason. `LEAVES_MASK` counts all positions whose centre
            is in the mask while the patch leaves it; `NEARLY_CONSTANT` counts drawn ones.
    """

    positions: np.ndarray
    valid_positions: int
    rejected: dict[str, int]


def sample_positions(
    array: np.ndarray,
    mask: np.ndarray | None,
    patch_px: int,
    count: int,
    rng: np.random.Generator,
    *,
    least_std: float,
    name: str,
    planes: Sequence[int] = AXIAL,
    least_inside: float = 1.0,
) -> Sampled:
    """Draw distinct positions, uniformly over all valid ones; patches may overlap.

    Args:
        array: (z, y, x), any unit.
        mask: bool of the same shape, or None for everywhere.
        patch_px: height and width of a patch.
        count: number of positions.
        rng: decides the draw.
        least_std: standard deviation below which a patch is nearly constant, in array's unit.
        name: of the case, for the error.
        planes: array axes that may lie across a patch; more than one asks for cubic voxels.
        least_inside: fraction of a patch that has to lie in the mask.

    Raises:
        UserError: fewer than `count` valid positions.
    """
    grid = _Positions(array.shape, mask, patch_px, round(least_inside * patch_px**2), planes)
    draws = min(grid.total, _DRAWS_A_PATCH * count)
    ranks = rng.choice(grid.total, draws, replace=False) if draws else np.zeros(0, np.int64)
    accepted: list[np.ndarray] = []
    tried = 0
    while len(accepted) < count and tried < draws:
        drawn = grid.at(ranks[tried : tried + count - len(accepted)])
        tried += len(drawn)
        accepted += [
            position
            for position in drawn
            if take_patch(array, position, patch_px).std(dtype=np.float64) >= least_std
        ]
    constant = tried - len(accepted)
    if len(accepted) < count:
        raise UserError(
            f"{name}: found {len(accepted)} of {count} patches of {patch_px} x {patch_px} pixels "
            f"({grid.total} positions inside the mask, {constant} of {tried} drawn ones nearly "
            "constant); ask for fewer or smaller patches, or leave the case out"
        )
    rejected = {LEAVES_MASK: grid.leaving, NEARLY_CONSTANT: constant}
    return Sampled(np.array(accepted, np.int32).reshape(-1, 4), grid.total, rejected)


def take_patch(
    array: np.ndarray, position: Sequence[int] | np.ndarray, patch_px: int
) -> np.ndarray:
    """The (p, p) patch of a (z, y, x) array at (plane, slice, row, column)."""
    plane, index, row, column = (int(number) for number in position)
    image = np.moveaxis(array, plane, 0)[index]
    return image[row : row + patch_px, column : column + patch_px]


def usable_slices(shape: tuple[int, ...], mask: np.ndarray | None, patch_px: int) -> np.ndarray:
    """Indices of the axial slices that hold at least one patch wholly in the mask."""
    grid = _Positions(shape, mask, patch_px, patch_px**2, AXIAL)
    return np.flatnonzero(np.diff(grid.ends, prepend=0))


class _Positions:
    """Numbers all valid positions from 0 to `total` - 1 without listing them."""

    def __init__(
        self,
        shape: tuple[int, ...],
        mask: np.ndarray | None,
        patch_px: int,
        least_area: int,
        planes: Sequence[int],
    ) -> None:
        self._shape, self._mask, self._patch_px, self._area = shape, mask, patch_px, least_area
        self._slices = [(plane, index) for plane in planes for index in range(shape[plane])]
        self.leaving = 0
        counts = []
        for plane, index in self._slices:
            valid = self._valid(plane, index)
            counts.append(np.count_nonzero(valid))
            self.leaving += int(np.count_nonzero(self._centres(plane, index, valid.shape) & ~valid))
        self.ends = np.cumsum(counts)
        self.total = int(self.ends[-1])

    def at(self, ranks: np.ndarray) -> np.ndarray:
        """(n, 4) positions of the ranks (n,), in their order."""
        positions = np.zeros((len(ranks), 4), np.int32)
        owners = np.searchsorted(self.ends, ranks, side="right")
        for owner in np.unique(owners):
            valid = self._valid(*self._slices[owner])
            first = self.ends[owner] - np.count_nonzero(valid)
            mine = owners == owner
            corners = np.flatnonzero(valid)[ranks[mine] - first]
            positions[mine, :2] = self._slices[owner]
            positions[mine, 2:] = np.transpose(np.unravel_index(corners, valid.shape))
        return positions

    def _valid(self, plane: int, index: int) -> np.ndarray:
        """Whether the patch at each first row and column lies in the mask."""
        rows, columns = (size for axis, size in enumerate(self._shape) if axis != plane)
        p = self._patch_px
        if min(rows, columns) < p:
            return np.zeros((0, 0), bool)
        if self._mask is None:
            return np.ones((rows - p + 1, columns - p + 1), bool)
        image = np.moveaxis(self._mask, plane, 0)[index]
        total = np.zeros((rows + 1, columns + 1), np.int32)
        np.cumsum(np.cumsum(image, 0, dtype=np.int32), 1, out=total[1:, 1:])
        inside = total[p:, p:] - total[p:, :-p] - total[:-p, p:] + total[:-p, :-p]
        return inside >= self._area

    def _centres(self, plane: int, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Whether the centre of each patch is in the mask."""
        if self._mask is None:
            return np.ones(shape, bool)
        image = np.moveaxis(self._mask, plane, 0)[index]
        half = self._patch_px // 2
        return image[half : half + shape[0], half : half + shape[1]]
