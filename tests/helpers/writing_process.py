"""A process that writes slices of volumes, and may kill itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.writers import SliceWriter, VolumeSpec, open_writer

NAMES = ("v.nii.gz", "v.nii", "v.tif", "v.ome.zarr", "v")
_SHAPE = (5, 33, 20)
VOLUME = Volume(
    np.random.default_rng(0).integers(-1000, 400, _SHAPE).astype(np.int16),
    Geometry((0.7, 0.8, 2.5), (-120.5, 33.25, -900.0)),
)
HALF = _SHAPE[0] // 2


def writer_in(folder: Path, name: str) -> SliceWriter:
    """The writer whose working folder is `folder`/`name`.work."""
    work = folder / f"{name}.work"
    work.mkdir(exist_ok=True)
    spec = VolumeSpec(_SHAPE, VOLUME.array.dtype, VOLUME.geometry, "scan")
    return open_writer(folder / name, work, spec)


def write_every_other(folder: Path, first: int) -> None:
    """Slices `first`, `first` + 2, ... in all formats."""
    for name in NAMES:
        writer = writer_in(folder, name)
        for index in range(first, _SHAPE[0], 2):
            writer.write(index, VOLUME.array[index])


def write_until_killed(folder: Path, name: str) -> None:
    """Half of the slices, and one of which the file is not renamed to its own name any more."""
    writer = writer_in(folder, name)
    writer.create()
    for index in range(HALF):
        writer.write(index, VOLUME.array[index])
    os.replace = Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    writer.write(HALF, VOLUME.array[HALF])
    os.kill(os.getpid(), signal.SIGKILL)


def start(folder: Path, what: object) -> subprocess.Popen:
    """`what` is the first slice for `write_every_other`, or the name for `write_until_killed`."""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], *sys.path)))
    command = [sys.executable, __file__, str(folder), str(what)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what.isdecimal():
        write_every_other(folder, int(what))
    else:
        write_until_killed(folder, what)
