"""A dataset appears whole or not at all, made by one process at a time.

Everything unfinished lies in a hidden folder beside it: the dataset, which is renamed at the end
and else removed, and the staged cases, which a later run takes over.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from data_pipelines.dataset_card import CARD_NAME
from data_pipelines.errors import UserError
from data_pipelines.output_folder import check_writable, made
from data_pipelines.staging import finished_cases

_DATASET, _OLD, _STAGING, _LOCK = "dataset", "old", "staging", "lock"


def staging_of(directory: Path) -> Path:
    """Where cases outlive a run that fails, of the directory that `replaced_directory` gives."""
    return directory.with_name(_STAGING)


@contextlib.contextmanager
def replaced_directory(output: Path, overwrite: bool) -> Iterator[Path]:
    """An empty directory that takes the place of `output` if all goes well, else vanishes.

    Raises:
        UserError: `output` exists and may not be overwritten, is not a dataset, lies in a locked
            folder, or is being made by another process.
    """
    output = output.resolve()
    check_writable(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not (output / CARD_NAME).is_file():
            raise UserError(f"{output} exists and is not a dataset; choose another directory")
        if not overwrite:
            raise UserError(f"{output} exists; choose another directory or pass --overwrite")
    partial = output.with_name(f".{output.name}.partial")
    with made(output.parent), _locked(partial, output):
        dataset, old = partial / _DATASET, partial / _OLD
        _remove(dataset, old)  # a run that was killed may have left these
        try:
            dataset.mkdir()
            yield dataset
            if output.exists():
                output.rename(old)
            dataset.rename(output)
        except (UserError, OSError) as error:
            message = f"{error}"
            if isinstance(error, OSError):
                message = f"{output} cannot be written: {error}"
            if finished_cases(partial / _STAGING):
                message += f"; finished cases are kept in {partial}, the same command goes on there"
            raise UserError(message) from error
        finally:
            _remove(dataset, old)
            if not finished_cases(partial / _STAGING):
                _remove(partial)


@contextlib.contextmanager
def _locked(partial: Path, output: Path) -> Iterator[None]:
    try:
        partial.mkdir(exist_ok=True)
        with filelock.FileLock(partial / _LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(
            f"{output} is being made by another process; wait for it, or choose another directory"
        ) from error


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
