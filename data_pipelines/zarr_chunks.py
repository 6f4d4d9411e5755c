"""Chunks of a Zarr array, checked before Blosc reads as far as their headers say."""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zarr

_HEADER = struct.Struct("<4xIII")  # Blosc 1: bytes unpacked, of a block, and packed
_ENTRY = struct.Struct("<QQ")  # of a shard's index: offset and bytes of a chunk
_NO_CHUNK = (2**64 - 1, 2**64 - 1)
_CHECKSUM_BYTES = 4
_MOST_TIMES = 8  # as many bytes as voxels have, which filters may make of them


def check_chunks(array: zarr.Array, files: Sequence[Path]) -> None:
    """Check that chunks of Blosc are as long as they say, and unpack to what a chunk holds.

    Args:
      array: of any codec.
      files: its chunks, or shards of several.

    Raises:
      ValueError: they do not, or a shard has an index of another kind than Zarr writes.
    """
    metadata = array.metadata.to_dict()
    codecs: Any = metadata.get("codecs") or [metadata.get("compressor") or {}]
    sharding = codecs[0].get("configuration", {}) if array.shards else {}
    if not any("blosc" in str(codec) for codec in sharding.get("codecs", codecs)):
        return
    most = _MOST_TIMES * math.prod(array.chunks) * array.dtype.itemsize
    for path in files:
        content = path.read_bytes()
        for start, length in _chunks(content, array, sharding):
            header = content[start : start + _HEADER.size]
            unpacked, _, packed = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            if packed != length or start + length > len(content) or unpacked > most:
                raise ValueError(f"{path.name} is damaged")


def _chunks(
    content: bytes, array: zarr.Array, sharding: dict[str, Any]
) -> Iterator[tuple[int, int]]:
    """(start, length) of the chunks in a file."""
    if not array.shards:
        yield 0, len(content)
        return
    names = [codec["name"] for codec in sharding["index_codecs"]]
    if names != ["bytes", "crc32c"] or sharding.get("index_location", "end") != "end":
        raise ValueError(f"the index of its shards is packed by {names}")
    count = math.prod(array.shards) // math.prod(array.chunks)
    index = content[-count * _ENTRY.size - _CHECKSUM_BYTES : -_CHECKSUM_BYTES]
    if len(index) != count * _ENTRY.size:
        raise ValueError("a shard is too short")
    yield from (entry for entry in _ENTRY.iter_unpack(index) if entry != _NO_CHUNK)
