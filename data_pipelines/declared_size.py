"""Whether a file can hold the voxels that its header declares.

Libraries set memory aside for what a header says, before they see whether the file holds as much.
"""

from pathlib import Path

from data_pipelines.errors import UserError

_LARGEST_RATIO = 1100  # of compression; deflate reaches 1032:1
_HARMLESS_BYTES = 1 << 26
_MOST_SLICES = 1 << 16


def check_size(path: Path, declared: int, stored: int, *, compressed: bool) -> None:
    """Check that what is stored can become what is declared.

    Args:
      path: named in the message.
      declared: bytes of all voxels, uncompressed.
      stored: bytes that there are of them.
      compressed: whether they are.

    Raises:
      UserError: it cannot.
    """
    most = max(_LARGEST_RATIO * stored, _HARMLESS_BYTES) if compressed else stored
    if declared > most:
        raise UserError(
            f"{path} is truncated or corrupt: it declares {declared} bytes of voxels and holds "
            f"{stored}; copy it again"
        )


def check_slices(path: Path, slices: int) -> None:
    """Check a number of slices, each of which takes its time however small it is.

    Raises:
      UserError: no scan has as many.
    """
    if not 1 <= slices <= _MOST_SLICES:
        raise UserError(f"{path} declares {slices} slices; give 1 to {_MOST_SLICES}")


def corrupt(path: Path, what: str) -> UserError:
    """The error for a header that contradicts itself or its format."""
    return UserError(f"{path} cannot be read, is it corrupt? {what}")
