"""What holds for the writers of all formats."""

import errno
import os
import resource
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from independent_readers import readings
from scan_files import OBLIQUE, assert_same
from scipy.spatial.transform import Rotation
from writing_process import HALF, VOLUME, start, writer_in
from writing_process import NAMES as SOME_NAMES

from data_pipelines import writers
from data_pipelines.errors import UserError
from data_pipelines.geometry import Geometry, Volume
from data_pipelines.volumes import read_volume
from data_pipelines.writers import VolumeSpec, check_size, extension_of, open_writer, put_in_place

NAMES = ("v.nii", "v.nii.gz", "v.mha", "v.nrrd", "v.tif", "v.tiff", "v.ome.zarr", "v.zarr", "v")
DTYPES = (np.int16, np.uint16, np.uint8, np.float32)


def random_volume(seed: int, dtype: type) -> Volume:
    """Any size, any direction, flips included."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 6)), *rng.integers(1, 71, 2).tolist())
    if dtype == np.float32:
        array = rng.normal(0, 500, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    axes = Rotation.random(random_state=seed).as_matrix() if seed % 3 else np.eye(3)
    geometry = Geometry(
        tuple(rng.uniform(0.05, 3, 3).tolist()),
        tuple(rng.uniform(-900, 900, 3).tolist()),
        tuple((axes * rng.choice([-1, 1], 3)).ravel().tolist()),
    )
    return Volume(array, geometry)


def spec_of(volume: Volume) -> VolumeSpec:
    return VolumeSpec(volume.array.shape, volume.array.dtype, volume.geometry, "scan 7")


def assert_written(path: Path, volume: Volume) -> None:
    for found in readings(path):
        if path.suffix == "" and volume.array.dtype == np.uint8:  # DICOM's CT images have 16 bits
            volume = Volume(volume.array.astype(np.uint16), volume.geometry)
        assert_same(found, volume)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_slices_in_any_order_and_some_twice(tmp_path: Path, name: str, seed: int) -> None:
    dtype = DTYPES[seed % 4 if name != "v" else seed % 3]
    volume = random_volume(seed, dtype)
    (tmp_path / "work").mkdir()
    writer = open_writer(tmp_path / name, tmp_path / "work", spec_of(volume))
    writer.create()
    order = np.random.default_rng(seed).permutation(len(volume.array)).tolist()
    for index in order:
        writer.write(index, np.zeros_like(volume.array[index]))
        writer.create()  # a resumed run does
        writer.write(index, volume.array[index])
    writer.write(order[0], volume.array[order[0]])
    writer.finish()
    put_in_place(writer.payload, tmp_path / name)
    assert_written(tmp_path / name, volume)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_our_own_reader_reads_the_same(tmp_path: Path, name: str, seed: int) -> None:
    volume = random_volume(seed, np.int16)
    writer = open_writer(tmp_path / name, tmp_path, spec_of(volume))
    writer.create()
    for index, plane in enumerate(volume.array):
        writer.write(index, plane)
    writer.finish()
    os.rename(writer.payload, tmp_path / name)
    read = read_volume(tmp_path / name)
    if name == "v" and np.linalg.det(np.reshape(volume.geometry.direction, (3, 3))) < 0:
        # The reader counts DICOM slices along the normal of their rows and columns.
        last = volume.geometry.physical_point((0, 0, len(volume.array) - 1))
        axes = np.reshape(volume.geometry.direction, (3, 3)) * (1, 1, -1)
        geometry = Geometry(volume.geometry.spacing_mm, last, tuple(axes.ravel().tolist()))
        volume = Volume(volume.array[::-1], geometry)
    assert_same(read, volume)


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, or the file that it is."""
    files = [folder, *folder.rglob("*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.is_file()}


def test_two_processes_write_every_other_slice(tmp_path: Path) -> None:
    made = {name: writer_in(tmp_path, name) for name in SOME_NAMES}
    for writer in made.values():
        writer.create()
    processes = [start(tmp_path, first) for first in (0, 1)]
    assert [process.wait(60) for process in processes] == [0, 0]
    for name, writer in made.items():
        writer.finish()
        os.rename(writer.payload, tmp_path / name)
        assert_written(tmp_path / name, VOLUME)


@pytest.mark.parametrize("name", SOME_NAMES)
def test_a_killed_process_is_continued_by_another(tmp_path: Path, name: str) -> None:
    assert start(tmp_path, name).wait(60) == -signal.SIGKILL
    writer = writer_in(tmp_path, name)
    writer.create()
    for index in range(HALF, len(VOLUME.array)):
        writer.write(index, VOLUME.array[index])
    writer.finish()
    first = content(writer.payload)
    assert not [file for file in first if "partial" in file]
    for index, plane in enumerate(VOLUME.array):  # again: the same bytes
        writer.write(index, plane)
    writer.finish()
    assert content(writer.payload) == first
    os.rename(writer.payload, tmp_path / name)
    assert_written(tmp_path / name, VOLUME)


@pytest.mark.parametrize("name", NAMES)
def test_no_more_than_a_slice_is_in_memory(tmp_path: Path, name: str) -> None:
    shape = (60, 300, 280)
    plane = np.random.default_rng(0).integers(-1000, 400, shape[1:]).astype(np.int16)
    spec = VolumeSpec(shape, plane.dtype, OBLIQUE, "scan")
    writer = open_writer(tmp_path / name, tmp_path, spec)
    writer.create()
    writer.write(0, plane)  # what the libraries load once
    tracemalloc.start()
    try:
        for index in range(1, shape[0]):
            writer.write(index, plane)
        writer.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * plane.nbytes  # of 60 slices


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_names_a_file(tmp_path: Path, name: str) -> None:
    """As a limit of the size of files, which the system reports as it does a full disk."""
    plane = np.random.default_rng(0).integers(-1000, 400, (400, 400)).astype(np.int16)
    spec = VolumeSpec((2, 400, 400), plane.dtype, OBLIQUE, "scan")
    writer = open_writer(tmp_path / name, tmp_path, spec)
    writer.create()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            writer.write(1, plane)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert str(tmp_path) in str(caught.value.filename)
    writer.write(0, plane)
    writer.write(1, plane)
    writer.finish()
    os.rename(writer.payload, tmp_path / name)
    assert_written(tmp_path / name, Volume(np.stack([plane, plane]), OBLIQUE))


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_another_kind(tmp_path: Path, name: str) -> None:
    spec = VolumeSpec((2, 4, 5), np.dtype(np.int16), OBLIQUE, "scan")
    writer = open_writer(tmp_path / name, tmp_path, spec)
    writer.create()
    for plane in (np.zeros((5, 4), np.int16), np.zeros((4, 5), np.float32)):
        with pytest.raises(ValueError, match=r"in a volume of int16 \(2, 4, 5\)"):
            writer.write(0, plane)


@pytest.mark.parametrize("name", ["v.jpg", "v.dcm", "v.mhd", ".hidden", "v.", "v.1"])
def test_names_without_a_format(name: str) -> None:
    with pytest.raises(UserError, match=r"\.nii\.gz, \.nii, \.mha, \.nrrd, \.ome\.zarr.*folder$"):
        extension_of(Path(name))


def test_names_with_a_format() -> None:
    for name in (*NAMES, "V.NII.GZ", "V.OME.ZARR", "V.Tif", "a.b.nii"):
        extension_of(Path(name))


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("v.nii", (2, 3, 32768), np.int16),
        ("v.nii.gz", (2, 32768, 3), np.int16),
        ("v", (2, 65536, 3), np.int16),
        ("v", (2, 3, 3), np.float32),
    ],
)
def test_volumes_that_a_format_cannot_hold(
    name: str, shape: tuple[int, int, int], dtype: type, tmp_path: Path
) -> None:
    spec = VolumeSpec(shape, np.dtype(dtype), OBLIQUE, "scan")
    with pytest.raises(UserError, match=rf"^{name} cannot hold.*end its name in \.ome\.zarr$"):
        check_size(Path(name), spec)
    with pytest.raises(UserError):
        open_writer(Path(name), tmp_path, spec)
    check_size(Path("v.ome.zarr"), spec)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_older_output_is_replaced(tmp_path: Path, kind: str) -> None:
    work, path = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    for number in (1, 2):
        payload = work / "new"
        if kind == "file":
            payload.write_text(str(number))
        else:
            payload.mkdir()
            (payload / str(number)).touch()
        writers.put_in_place(payload, path)
    assert path.read_text() == "2" if kind == "file" else [p.name for p in path.iterdir()] == ["2"]
