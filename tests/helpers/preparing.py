"""Preparations of tiny scans, as processes of their own, that can be stopped at a given place."""

import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from small_volumes import write_clinical, write_micro

from data_pipelines import prepare as preparation
from data_pipelines.ct_patches import ct_patches
from data_pipelines.prepare import PrepareOptions, prepare

REPOSITORY = Path(__file__).parents[2]
RECORDS = "records"  # a place to stop at, beside the names of the scans


def write_scans(folder: Path) -> Path:
    """Three clinical and four micro scans, of all dtypes."""
    for number in range(3):
        write_clinical(folder / "clinical" / f"c{number}.nii.gz", number)
    for number, dtype in enumerate((np.uint16, np.int16, np.float32, np.uint8)):
        write_micro(folder / "micro" / f"m{number}.mha", 10 + number, dtype)
    return folder


def small_options(scans: Path, output: Path, **changes: object) -> PrepareOptions:
    options = PrepareOptions(
        clinical=(str(scans / "clinical"),),
        micro=(str(scans / "micro"),),
        output=output,
        scale=4,
        clinical_patch=6,
        patches_per_volume=12,
        clinical_mask="none",
        micro_mask="none",
        workers=1,
    )
    return dataclasses.replace(options, **changes)


def small_flags(scans: Path, output: Path) -> list[str]:
    """`small_options` on the command line."""
    return [
        f"--clinical={scans}/clinical",
        f"--micro={scans}/micro",
        f"--output={output}",
        "--scale=4",
        "--clinical-patch=6",
        "--patches-per-volume=12",
        "--clinical-mask=none",
        "--micro-mask=none",
        "--workers=1",
    ]


def run(*flags: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_pipelines.prepare", *map(str, flags)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, **options)


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def started(scans: Path, output: Path, place: str, **changes: object) -> subprocess.Popen:
    """A preparation that hangs in the case `place`, in all cases if empty, or in `RECORDS`."""
    told = json.dumps(changes)
    paths = os.pathsep.join(map(str, (REPOSITORY, Path(__file__).parent, *sys.path)))
    return subprocess.Popen(
        [sys.executable, __file__, str(scans), str(output), place, told],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
    )


def wait_for_pids(process: subprocess.Popen, folder: Path, count: int) -> list[int]:
    """The processes that hang, each of which leaves a file of its number below a folder."""
    deadline = time.monotonic() + 60
    while len(found := list(folder.rglob("*.pid"))) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(path.stem) for path in found]


def killed(scans: Path, output: Path, place: str, **changes: object) -> None:
    """Let a preparation come to a place, and kill it there."""
    process = started(scans, output, place, **changes)
    wait_for_pids(process, output.parent, 1)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


def hang(folder: Path) -> None:
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def hanging_case(stage, place, task):
    if place in ("", task.path.name):
        hang(task.directory)
    return stage(task)


def dying_case(task):
    os.kill(os.getpid(), signal.SIGKILL)


def _hanging_records(directory, *_):
    hang(directory)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scans, output, place, changes = sys.argv[1:]
    if place == RECORDS:
        ct_patches.write_domain = _hanging_records
    else:
        preparation.stage_case = functools.partial(hanging_case, preparation.stage_case, place)
    prepare(small_options(Path(scans), Path(output), **json.loads(changes)))
