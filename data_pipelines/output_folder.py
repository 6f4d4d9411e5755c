"""The folder that an output goes into: writable, made when missing, gone if it stays empty."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import UserError


def check_writable(path: Path) -> None:
    """Check that a file or folder may appear at `path`, of which folders may be missing.

    Raises:
      UserError: the nearest of its folders that exists is a file, or locked.
    """
    folders = path.absolute().parents
    nearest = next((folder for folder in folders if os.path.lexists(folder)), path)
    if not os.path.isdir(nearest):
        raise UserError(f"{path} cannot be written: {nearest} is no folder; choose another name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{path} cannot be written: Permission denied in {nearest}; choose another folder"
        )


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that are new and stay empty vanish at the end."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
