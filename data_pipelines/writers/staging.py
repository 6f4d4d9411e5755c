"""Files that are either whole or not there, in a folder that others know nothing of."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` a file name, which that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def staged(path: Path, folder: Path) -> Iterator[Path]:
    """A name in `folder` to write to, which becomes `path` at the end unless that failed.

    The name is the same each time, so that a killed process leaves no more than one such file.
    """
    partial = folder / f"partial-{path.name}"
    with naming(path):
        yield partial
        os.replace(partial, path)


def write_at(path: Path, offset: int, data: memoryview) -> None:
    """Write into a file that exists."""
    with naming(path), open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def put_in_place(payload: Path, path: Path) -> None:
    """Rename a finished payload to its final name.

    An older file of that name is replaced; an older folder stays beside the payload, in the
    working folder, and goes with that.
    """
    if path.is_dir():
        os.replace(path, payload.with_name("replaced"))
    os.replace(payload, path)
