"""Outputs that take hours: continued where they stopped, and never mistaken for whole ones.

Everything unfinished lies in a hidden folder beside the output, with a ledger of the slices that
are written. The output appears under its name, by one rename, when all slices are.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from data_pipelines.errors import UserError
from data_pipelines.file_names import lies_inside
from data_pipelines.output_folder import made
from data_pipelines.typed_json import from_json, typed
from data_pipelines.writers import put_in_place

_FOLDER = ".unfinished-"
_SETTINGS, _LEDGER, _LOCK, _JOURNAL = "settings.json", "ledger", "lock", "publish.json"


class UnfinishedOutput:
    """The working folder of one output, and which of its slices are written.

    Attributes:
      folder: in which everything unfinished lies.
      dropped: slices that a run with other settings had written.
    """

    def __init__(self, folder: Path, process: int, dropped: int = 0):
        self.folder = folder
        self.dropped = dropped
        self._ledger = folder / f"{_LEDGER}-{process}.jsonl"

    def done(self) -> dict[int, dict[str, Any]]:
        """What was recorded of each slice that is written, by its index, by any process."""
        return _done(self.folder)

    def record(self, index: int, values: Mapping[str, Any]) -> None:
        """Note that a slice is written; to be called after all its outputs are."""
        with open(self._ledger, "a") as ledger:
            # A line of its own, also after one that a killed process left half-written.
            ledger.write("\n" + json.dumps({"slice": index, **values}) + "\n")

    def publish(self, payloads: Sequence[tuple[Path, Path]]) -> None:
        """Rename finished payloads to their final names, in this order, and drop the folder.

        Once it has begun, `finish_publishing` ends it, and the folder is not continued otherwise.
        """
        journal = [(str(p.relative_to(self.folder)), path.name) for p, path in payloads]
        partial = self.folder / f"partial-{_JOURNAL}"
        partial.write_text(json.dumps(journal))
        partial.replace(self.folder / _JOURNAL)
        _publish(self.folder)


def finish_publishing(path: Path) -> bool:
    """Put what a killed process was publishing as `path` in its place; whether there was any.

    What a process that lives is publishing is left to it.

    Raises:
      UserError: the folder of what is unfinished is damaged.
    """
    folder = _folder_of(path)
    if not (folder / _JOURNAL).exists():
        return False
    try:
        with _lock(folder, 0):
            _publish(folder)
    except filelock.Timeout:
        return False
    return True


@contextlib.contextmanager
def unfinished_output(
    path: Path, settings: Mapping[str, Any], *, process: int = 0
) -> Iterator[UnfinishedOutput]:
    """The working folder of `path`, continued if an earlier run with equal settings left one.

    What a run with other settings left is dropped. The folder outlives an exception, but not one
    that comes before any slice is recorded.

    Args:
      path: the output's final name.
      settings: everything that decides the output's voxels; values of JSON.
      process: of several that write one output; process 0 must enter first.

    Raises:
      UserError: another run is writing `path`.
    """
    folder, dropped = _folder_of(path), 0
    with made(path.parent):
        if process == 0:
            folder.mkdir(exist_ok=True)
        lock = _lock(folder, process)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"{path} is being written by another process; wait for it, or choose another name"
            ) from error
        try:
            if process == 0 and _settings_of(folder) != json.loads(json.dumps(settings)):
                dropped = len(_done(folder))
                _emptied(folder, but=Path(lock.lock_file))
                (folder / _SETTINGS).write_text(json.dumps(settings))
            yield UnfinishedOutput(folder, process, dropped)
        finally:
            lock.release()
            if process == 0 and not any(folder.glob(f"{_LEDGER}-*.jsonl")):
                shutil.rmtree(folder, ignore_errors=True)


def _folder_of(path: Path) -> Path:
    return path.with_name(f"{_FOLDER}{path.name}")


def _lock(folder: Path, process: int) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / f"{_LOCK}-{process}", timeout=0)


def _publish(folder: Path) -> None:
    for payload, name in _journal(folder):
        if (folder / payload).exists():
            put_in_place(folder / payload, folder.parent / name)
    _emptied(folder, but=folder / _JOURNAL)  # which goes last: the folder is continued by it alone
    shutil.rmtree(folder)


def _journal(folder: Path) -> list[tuple[str, str]]:
    """Payloads in the folder, and the names that they get beside it.

    Raises:
      UserError: it says something else.
    """
    path = folder / _JOURNAL
    stem = folder.name.removeprefix(_FOLDER).partition(".")[0]
    try:
        journal = typed(from_json(path.read_bytes()), list[tuple[str, str]])
        for payload, name in journal:
            if not lies_inside(payload) or Path(name).name != name or not name.startswith(stem):
                raise ValueError(f"{payload!r} as {name!r}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder}") from error
    return journal


def _done(folder: Path) -> dict[int, dict[str, Any]]:
    done: dict[int, dict[str, Any]] = {}
    for ledger in sorted(folder.glob(f"{_LEDGER}-*.jsonl")):
        done |= {line.pop("slice"): line for line in _whole_lines(ledger)}
    return done


def _settings_of(folder: Path) -> Any:
    try:
        return from_json((folder / _SETTINGS).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _emptied(folder: Path, but: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != but:
            path.unlink()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a ledger; one that a killed process left half-written counts for nothing."""
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            line = from_json(text)
            if isinstance(line, dict) and isinstance(line.get("slice"), int):
                yield line
