"""Cases are staged once: what a stopped preparation has finished, the next one takes over.

A case has a folder of its own, named by all that decides its content, which appears by one rename
when the case is whole. What a worker finds is handed over by files alone, so that workers may be
other machines that share the folder.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.dataset_card import (
    FORMAT_VERSION,
    CaseCard,
    SkippedCase,
    installed_software,
)
from data_pipelines.errors import UserError
from data_pipelines.file_names import IMAGES, extension, lies_inside
from data_pipelines.stage_case import CaseTask, StagedCase, StagedPatches
from data_pipelines.typed_json import from_json, typed

_RECORD, _BAD = "case.json", ".bad"
_HEADERS = (".mhd", ".nhdr")  # whose voxels may lie in another file
_UID = re.compile(r"\d+(\.\d+){4,}")
_SLICE_NAME = re.compile(rf"\S+({'|'.join((*IMAGES, '.dcm', '.ima'))})\b", re.IGNORECASE)


class Run(Protocol):
    """Calls a function once for each task, in workers."""

    @property
    def forwards_errors(self) -> bool:
        """Whether an exception in a worker ends the work and is raised here as it is."""

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any], label: str) -> Any:
        """Return when all are done."""


@dataclasses.dataclass(frozen=True)
class BadCase:
    """A case that cannot be staged, and the line that says why."""

    task: CaseTask
    message: str

    def for_card(self) -> SkippedCase:
        """Without its remedy, folders, names of single slices, and UIDs."""
        path, reason = self.task.path, self.message.split(";")[0]
        if path.is_dir():
            files = sorted(path.rglob("*"), key=lambda file: -len(str(file)))
            for file in files:
                reason = reason.replace(str(file), path.name)
            for file in files:
                if not file.name.isdecimal():
                    reason = reason.replace(f" {file.name}", " a slice")
            reason = _SLICE_NAME.sub("a slice", reason)
        for folder in {path.parent, path.parent.absolute(), path.parent.resolve()}:
            reason = reason.replace(f"{folder}/", "")
        return SkippedCase(self.task.domain, path.name, _UID.sub("(UID)", reason))


def stage_all(
    tasks: Sequence[CaseTask],
    stage: Callable[[CaseTask], StagedCase],
    run: Run,
    *,
    skip_bad: bool,
) -> list[StagedCase | BadCase]:
    """Stage the cases that are not staged yet.

    Args:
        tasks: of which `directory` is the one for all cases.
        stage: `stage_case`.
        run: in which workers.
        skip_bad: go on after a case that raises a `UserError`.

    Returns:
        What became of each task.

    Raises:
        UserError: of the first bad case, unless `skip_bad`.
    """
    tasks = [_in_its_folder(task) for task in tasks]
    waiting = [task for task in tasks if not task.directory.is_dir()]
    if len(waiting) < len(tasks):
        staged = len(tasks) - len(waiting)
        print(f"{staged} of {len(tasks)} cases were already staged", file=sys.stderr)
    raises = run.forwards_errors and not skip_bad
    run(functools.partial(_stage_once, stage, raises), waiting, "reading volumes")
    outcomes = [_outcome(task) for task in tasks]
    for outcome in outcomes:
        if isinstance(outcome, BadCase):
            if not skip_bad:
                raise UserError(outcome.message)
            print(f"skipped: {outcome.message}", file=sys.stderr)
    return outcomes


def forget_others(staging: Path, tasks: Sequence[CaseTask]) -> None:
    """Make the folder of all cases, or remove from it what is no finished case of these tasks."""
    staging.mkdir(exist_ok=True)
    wanted = {_in_its_folder(task).directory for task in tasks}
    for path in staging.iterdir():
        if path.is_dir() and path not in wanted:
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()


def finished_cases(staging: Path) -> int:
    """How many whole cases a folder holds."""
    return len(list(staging.glob(f"*/{_RECORD}"))) if staging.is_dir() else 0


def _in_its_folder(task: CaseTask) -> CaseTask:
    """The task with a directory of its own: equal for equal cases, options, files and programs."""
    told = dataclasses.asdict(task) | {
        "directory": "",
        "path": os.path.abspath(task.path),
        "files": _files(task.path),
        "format_version": FORMAT_VERSION,
        "software": installed_software(),
    }
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
    return dataclasses.replace(task, directory=task.directory / name)


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file that a case may be read from."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif extension(path, _HEADERS):
        files = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    else:
        files = [path]
    stats = ((file, file.stat()) for file in files)
    return [(str(file), found.st_size, found.st_mtime_ns) for file, found in stats]


def _stage_once(stage: Callable[[CaseTask], StagedCase], raises: bool, task: CaseTask) -> None:
    """Stage a case under another name, then rename its folder; or leave a line why it is bad."""
    partial = task.directory.with_name(f"{task.directory.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        staged = stage(dataclasses.replace(task, directory=partial))
        (partial / _RECORD).write_text(_to_json(staged))
        _rename(partial, task.directory)
    except UserError as error:
        if raises:
            raise
        line = partial.with_suffix(partial.suffix + _BAD)
        line.write_text(str(error))
        line.replace(task.directory.with_suffix(_BAD))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # as where a runner gives a slow case to a second worker
            raise


def _outcome(task: CaseTask) -> StagedCase | BadCase:
    bad = task.directory.with_suffix(_BAD)
    if bad.exists():
        message = bad.read_text()
        bad.unlink()  # it may hold UIDs
        return BadCase(task, message)
    record = task.directory / _RECORD
    try:
        return _staged(typed(from_json(record.read_bytes()), _Record), task)
    except Exception as error:  # NumPy names no kinds
        raise UserError(f"{record.parent} is damaged ({error}); delete it") from error


@dataclasses.dataclass(frozen=True)
class _Record:
    """A staged case as JSON: (split, patches, positions) of each split, by the names of files."""

    card: CaseCard
    dtype: str
    staged: list[tuple[str, str, str]]
    preview: str


def _to_json(staged: StagedCase) -> str:
    parts = [(p.split, p.patches.name, p.positions.name) for p in staged.staged]
    record = _Record(staged.card, staged.dtype, parts, staged.preview.name)
    return json.dumps(dataclasses.asdict(record))


def _staged(record: _Record, task: CaseTask) -> StagedCase:
    names = [name for _, *files in record.staged for name in files]
    for name in (*names, record.preview):
        if not lies_inside(name):
            raise ValueError(f"{name!r} is no file of the case")
    folder = task.directory
    if {split for split, *_ in record.staged} != set(task.patches):
        raise ValueError("patches of other splits")
    staged = tuple(
        StagedPatches(task.index, split, folder / patches, folder / positions)
        for split, patches, positions in record.staged
    )
    for part in staged:
        _check_arrays(part, record, task.options.patch_px)
    return StagedCase(record.card, record.dtype, staged, folder / record.preview)


def _check_arrays(part: StagedPatches, record: _Record, patch_px: int) -> None:
    """Check the files of a split by their headers, which also say how long they must be."""
    patches, positions = (np.load(path, mmap_mode="r") for path in (part.patches, part.positions))
    count = record.card.patches[part.split]
    if patches.dtype != record.dtype or patches.shape != (count, patch_px, patch_px):
        raise ValueError(f"{part.patches.name} holds {patches.dtype} {patches.shape}")
    if positions.dtype != np.int32 or positions.shape != (count, 4):
        raise ValueError(f"{part.positions.name} holds {positions.dtype} {positions.shape}")
