"""Staged patches -> record files, each written by itself, in any process.

The order of a split's records is TFDS's: by the MD5 hash of the split's name and the record's key.
"""

import dataclasses
import functools
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.quiet_tensorflow import tf
from data_pipelines.stage_case import StagedPatches

POSITION_FIELDS = ("plane", "slice", "row", "column")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file to write.

    Attributes:
        path: of the file.
        order: a file of `save_order`.
        first: of the split's records.
        last: the record after the last.
        patch_px: height and width of a patch.
        dtype: "int16" or "uint16", of the domain.
    """

    path: Path
    order: Path
    first: int
    last: int
    patch_px: int
    dtype: str


@functools.cache
def features(patch_px: int, dtype: str) -> tfds.features.FeaturesDict:
    """What a record holds."""
    scalar = tfds.features.Scalar(np.int32)
    # Without encoding="bytes" TFDS stores int16 as int64.
    patch = tfds.features.Tensor(
        shape=(patch_px, patch_px), dtype=np.dtype(dtype).type, encoding="bytes"
    )
    return tfds.features.FeaturesDict(
        {"patch": patch, "case": scalar} | dict.fromkeys(POSITION_FIELDS, scalar)
    )


def save_order(path: Path, split: str, parts: Sequence[StagedPatches]) -> int:
    """Save which row of which part each record of a split is, and return their number.

    It is read from there, since it is too much to send along with each shard.
    """
    rows = [len(np.load(part.patches, mmap_mode="r")) for part in parts]
    places = np.array([(part, row) for part, count in enumerate(rows) for row in range(count)])
    salted = hashlib.md5(split.encode())
    digests = bytearray()
    for part, row in places:
        digest = salted.copy()
        digest.update(f"{parts[part].case}/{row}".encode())
        digests += digest.digest()
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    np.savez(
        path,
        order=places[np.lexsort((low, high))],
        case=[part.case for part in parts],
        patches=[str(part.patches) for part in parts],
        positions=[str(part.positions) for part in parts],
    )
    return len(places)


def write_shard(shard: Shard) -> None:
    """Write one record file under another name, then rename it."""
    partial = shard.path.with_name(f".{shard.path.name}.{uuid.uuid4().hex}")
    serialise = features(shard.patch_px, shard.dtype).serialize_example
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for example in _examples(shard):
            writer.write(_with_sorted_fields(serialise(example)))
    partial.replace(shard.path)


def _examples(shard: Shard) -> Iterator[dict[str, Any]]:
    with np.load(shard.order) as saved:
        order = saved["order"][shard.first : shard.last]
        case, patches, positions = (saved[name] for name in ("case", "patches", "positions"))
    mapped = functools.cache(lambda path: np.load(path, mmap_mode="r"))
    for part, row in order:
        patch = mapped(patches[part])[row]
        if patch.dtype != shard.dtype:  # int16 in a domain of uint16
            patch = (patch.astype(np.int32) + 32768).astype(shard.dtype)
        position = mapped(positions[part])[row]
        yield dict(zip(POSITION_FIELDS, position, strict=True)) | {
            "patch": patch,
            "case": case[part],
        }


def _with_sorted_fields(serialised: bytes) -> bytes:
    """Protobuf orders the fields of an Example anew in each process, unless told to sort them."""
    return tf.train.Example.FromString(serialised).SerializeToString(deterministic=True)
