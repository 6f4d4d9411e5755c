"""TFRecord shards of a prepared dataset -> NumPy, without TensorFlow."""

import collections
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError, Message

from data_pipelines.dataset_card import DomainCard
from data_pipelines.errors import UserError

INTERLEAVED_SHARDS = 8
_FRAME_BYTES = 16  # of a record: its length and two checksums

# What is needed of tensorflow/core/example/*.proto; a map is a repeated pair of key and value.
_EXAMPLE_PROTO = """
name: "example.proto" syntax: "proto3"
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "Pair" } }
message_type { name: "Pair"
  field { name: "key" number: 1 type: TYPE_STRING }
  field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "BytesList" }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64List" } }
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
"""


def read_records(
    directory: Path, domain: DomainCard, name: str, split: str, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The first records of a split, its shards read in turn.

    Args:
        directory: of the dataset.
        domain: its card.
        name: "clinical" or "micro".
        split: "train" or "validation".
        count: n; None for all.

    Returns:
        Patches as stored, (n, p, p, 1) of the domain's dtype, and their case indices (n,).

    Raises:
        UserError: a record is damaged or missing.
    """
    count = domain.patches(split) if count is None else count
    shape = (domain.patch_px, domain.patch_px, 1)
    patches = np.empty((count, *shape), domain.dtype)
    case = np.empty(count, np.int64)
    stored = np.dtype(domain.dtype).newbyteorder("<")
    records = _in_turn([directory / name for name in domain.shards_of(split)])
    try:
        for index in range(count):
            record = next(records, None)
            if record is None:
                raise ValueError(f"{count - index} of {count} are missing")
            features = {f.key: f.value for f in _Example.FromString(record).features.feature}
            patch = features["patch"].bytes_list.value[0]
            patches[index] = np.frombuffer(patch, stored).reshape(shape)
            case[index] = features["case"].int64_list.value[0]
        check_cases(domain, case)
    except (DecodeError, LookupError, ValueError, OSError) as error:
        raise UserError(
            f"{directory} has a damaged {name} record ({error}); prepare the dataset again"
        ) from error
    return patches, case


def check_cases(domain: DomainCard, case: np.ndarray) -> None:
    """Check case indices (n,) of records against the card.

    Raises:
        ValueError: there is no such case.
    """
    strange = case[(case < 0) | (case >= len(domain.cases))]
    if strange.size:
        raise ValueError(f"case {strange[0]}, of {len(domain.cases)}")


def check_lengths(path: Path) -> None:
    """Check that a shard's records end where it ends, before TensorFlow makes room for them.

    Raises:
        ValueError: one is longer.
    """
    size, place = path.stat().st_size, 0
    with path.open("rb", buffering=0) as file:
        while place < size:
            (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, place).ljust(8))
            if length > size - place - _FRAME_BYTES:
                raise ValueError(f"{path.name} at byte {place}: longer than the file")
            place += _FRAME_BYTES + length


def _in_turn(paths: Sequence[Path]) -> Iterator[bytes]:
    """One record each of several open shards; where one ends, the next is opened."""
    waiting = map(_records, paths)
    turn = collections.deque(itertools.islice(waiting, INTERLEAVED_SHARDS))
    while turn:
        shard = turn.popleft()
        record = next(shard, None)
        if record is None:
            turn.extend(itertools.islice(waiting, 1))
        else:
            turn.append(shard)
            yield record


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while file.peek(1):
            (size,) = struct.unpack("<Q", _checked(file, 8))
            yield _checked(file, size)


def _checked(file: BinaryIO, size: int) -> bytes:
    """The next bytes, which their checksum follows: a CRC-32C, rotated and shifted."""
    start = file.tell()
    if size > os.fstat(file.fileno()).st_size - start:
        raise ValueError(f"{Path(file.name).name} at byte {start}: longer than the file")
    content, checksum = file.read(size), file.read(4)
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if checksum != struct.pack("<I", masked):
        raise ValueError(f"{Path(file.name).name} at byte {start}: wrong checksum")
    return content


def _example_message() -> type[Message]:
    file = text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


_Example = _example_message()
