"""Readers and files that somebody damaged or forged; `hostile_input.py` can try more."""

import gzip
import json
import pickle
import struct
import zlib
from pathlib import Path

import nibabel
import numcodecs
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr
from hostile_images import IMAGE_SUBJECTS
from hostile_input import campaign
from scan_files import OBLIQUE, numbers, refuses, write_dicom, write_images

from data_pipelines.geometry import Volume
from data_pipelines.volumes import read_volume, write_volume

MUTANTS = 40


@pytest.mark.parametrize("kind", IMAGE_SUBJECTS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    outcomes, failures = campaign(kind, MUTANTS, 0, tmp_path)
    assert not failures, "\n".join(failures)
    if kind != "real_png":  # of which one compressed part is nearly all
        assert outcomes["read"]
    assert outcomes["refused"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DimSize = 9 7 5", b"DimSize = 90000 70000 5"),
        (b"NDims = 3", b"NDims = 2000000000"),
        (b"Offset = 0 0 0", b"Offset = 0"),
        (b"BinaryData = True", b"BinaryData = False"),
        (b"v.raw", b"%s%s%s%n.raw 1 5 1"),
        (b"v.raw", b"v%d.raw 1 2000000000 1"),
        (b"v.raw", b"/etc/passwd"),
        (b"v.raw", b"../v.raw"),
        (b"v.raw", b"v" * 5000),
        (b"v.raw", b"LIST\n/etc/passwd"),
    ],
)
def test_a_forged_metaimage(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(path))
    header = path.read_bytes()
    assert old in header
    path.write_bytes(header.replace(old, new))
    refuses(path, "v.mhd")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"sizes: 9 7 5", b"sizes: 90000 70000 5"),
        (b"dimension: 3", b"dimension: 16"),
        (b"data file: v.raw", b"data file: /etc/passwd"),
        (b"data file: v.raw", b"data file: LIST\n/etc/passwd"),
    ],
)
def test_a_forged_nrrd(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.nhdr"
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(path))
    header = path.read_bytes()
    assert old in header
    path.write_bytes(header.replace(old, new))
    refuses(path, "v.nhdr")


def test_voxels_below_the_header_are_read(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers()), str(tmp_path / "v.mhd"))
    (tmp_path / "below").mkdir()
    (tmp_path / "v.raw").rename(tmp_path / "below" / "v.raw")
    header = (tmp_path / "v.mhd").read_text().replace("v.raw", "below/v.raw")
    (tmp_path / "v.mhd").write_text(header)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.mhd").array, numbers())


def test_a_nifti_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(numbers().T, np.eye(4)).header
    for shape in ((20_000, 20_000, 100), (1, 1, 1, 1, 1, 1, 32_000)):
        header.set_data_shape(shape)
        content = header.binaryblock + bytes(4 + 10_000)
        for name, packed in (("v.nii", content), ("v.nii.gz", gzip.compress(content))):
            (tmp_path / name).write_bytes(packed)
            refuses(tmp_path / name, name)


def test_a_png_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    path = tmp_path / "slice_0.png"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    refuses(path, f"{path} is truncated or corrupt: it declares", spacing_mm=(1, 1, 1))


def test_pages_of_a_tiff_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    sitk.WriteImage(sitk.GetImageFromArray(numbers((2, 8, 8), np.uint16)), str(path))
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * entries, first)
    path.write_bytes(content)
    refuses(path, "v.tif", spacing_mm=(1, 1, 1))


ITEM = (0xFFFE, 0xE000)


@pytest.mark.parametrize(
    "element",
    [
        struct.pack("<HHI", 0x0009, 0x1001, 4_000_000_000),
        struct.pack("<HHIHHI", 0x0009, 0x1001, 0xFFFFFFFF, *ITEM, 3_000_000_000),
        struct.pack("<HHIHHI", 0x0009, 0x1001, 0xFFFFFFFF, *ITEM, 0xFFFFFFFF) * 50,
    ],
)
def test_an_element_of_dicom_that_is_longer_than_the_file(element: bytes, tmp_path: Path) -> None:
    path = write_dicom(tmp_path, numbers())[0]
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x10\x00")
    path.write_bytes(content[:place] + element + content[place:])
    refuses(tmp_path, f"{path} cannot be read")


class WritesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("codec", [numcodecs.Pickle(), numcodecs.PackBits()])
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_zarr_of_a_codec_that_is_not_known(
    codec: numcodecs.abc.Codec, place: str, tmp_path: Path
) -> None:
    IMAGE_SUBJECTS["zarr_v2"].make(tmp_path)
    metadata = tmp_path / "scan.zarr" / "0" / ".zarray"
    fields = json.loads(metadata.read_text()) | {"filters": None, "compressor": None}
    fields[place] = [codec.get_config()] if place == "filters" else codec.get_config()
    metadata.write_text(json.dumps(fields))
    for chunk in metadata.parent.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(WritesAFile(tmp_path / "written")))
    refuses(tmp_path / "scan.zarr", codec.codec_id)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("shape", [[200_000, 8, 8], [4, 800_000, 800_000], [0, 8, 8]])
def test_a_zarr_that_declares_more_than_it_holds(shape: list[int], tmp_path: Path) -> None:
    IMAGE_SUBJECTS["zarr_v2"].make(tmp_path)
    metadata = tmp_path / "scan.zarr" / "0" / ".zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"shape": shape}))
    refuses(tmp_path / "scan.zarr", "declares")


@pytest.mark.parametrize("kinds", [(1, 0), (0, 1), (1, 1), (2, 0)])
def test_thumbnails_among_the_pages_of_a_tiff(kinds: tuple[int, int], tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        for kind, page in zip(kinds, numbers((2, 64, 64), np.uint16)):
            file.write(page, subfiletype=kind, contiguous=False)
    refuses(tmp_path / "v.tif", "has thumbnails or no pages; save it", spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("shards", [None, (4, 8, 8)])
@pytest.mark.parametrize("field", [4, 12])
def test_a_chunk_that_says_another_length_to_blosc(
    shards: tuple[int, ...] | None, field: int, tmp_path: Path
) -> None:
    folder = tmp_path / "scan.ome.zarr"
    write_volume(Volume(numbers((4, 8, 8)), OBLIQUE), folder)
    array = zarr.create_array(
        folder / "0",
        data=numbers((4, 8, 8)),
        chunks=(2, 8, 8),
        shards=shards,
        compressors=zarr.codecs.BloscCodec(),
        overwrite=True,
    )
    np.testing.assert_array_equal(read_volume(folder).array, array[:])
    chunk = next(file for file in (folder / "0" / "c").rglob("*") if file.is_file())
    content = bytearray(chunk.read_bytes())
    struct.pack_into("<I", content, field, 0x3E810BC3)
    chunk.write_bytes(content)
    refuses(folder, "is damaged")
