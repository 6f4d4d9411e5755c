"""Damaged and forged versions of a file's bytes, the same ones for the same random numbers."""

import contextlib
import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import google_crc32c

_EDGES = (0, 1, 2, 127, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_WORDS = (b"-1", b"0", b"1e308", b"nan", b"inf", b"65536", b"4294967295", b"99999999999", b"\0")
_VALUES = [None, True, -1, 0, 1.5, 1e308, 2**31, 10**30, float("nan"), float("inf")]
_VALUES += ["", "x", "../../x", "\x1b[31m", "9" * 5000, [], {}, [[]], [1, 2, 3], {"a": 1}]
_HEADER_BYTES = 400  # most of what a reader believes stands at the start
_GZIP = b"\x1f\x8b"


def mutant(content: bytes, random: Random) -> bytes:
    """The content with one to four changes; of a gzip or JSON file also in what it says."""
    if content.startswith(_GZIP) and random.random() < 0.7:
        return gzip.compress(mutant(gzip.decompress(content), random), 1, mtime=0)
    if content.startswith((b"{", b"[")) and random.random() < 0.7:
        with contextlib.suppress(ValueError):  # of lines of JSON
            return json.dumps(_other_value(json.loads(content), random)).encode()
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice(_CHANGES)(content, random)
    return content


def _replaced(content: bytes, start: int, size: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + size :]


def _place(content: bytes, random: Random) -> int:
    end = min(len(content), _HEADER_BYTES) if random.random() < 0.7 else len(content)
    return random.randrange(max(end, 1))


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _flip(content: bytes, random: Random) -> bytes:
    place = _place(content, random)
    flipped = bytes(byte ^ 1 << random.randrange(8) for byte in content[place : place + 1])
    return _replaced(content, place, 1, flipped)


def _edge(content: bytes, random: Random) -> bytes:
    code = random.choice("BHIQ")
    size = struct.calcsize(code)
    number = struct.pack(random.choice("<>") + code, random.choice(_EDGES) % 2 ** (8 * size))
    return _replaced(content, _place(content, random), size, number)


def _noise(content: bytes, random: Random) -> bytes:
    new = random.randbytes(random.randrange(1, 32))
    return _replaced(content, _place(content, random), len(new), new)


def _inserted(content: bytes, random: Random) -> bytes:
    return _replaced(content, _place(content, random), 0, random.randbytes(random.randrange(64)))


def _removed(content: bytes, random: Random) -> bytes:
    return _replaced(content, _place(content, random), random.randrange(1, 64), b"")


def _repeated(content: bytes, random: Random) -> bytes:
    place, size = _place(content, random), random.randrange(1, 128)
    part = content[place : place + size]
    return _replaced(content, place, size, part * random.choice((2, 3, 50)))


def _number(content: bytes, random: Random) -> bytes:
    """Another word for one of the numbers in a text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[: 4 * _HEADER_BYTES]))
    if not found:
        return _edge(content, random)
    match = random.choice(found)
    return _replaced(content, match.start(), len(match[0]), random.choice(_WORDS))


def _line(content: bytes, random: Random) -> bytes:
    """A line of a text less, twice, or exchanged with another one."""
    lines = content[: 4 * _HEADER_BYTES].split(b"\n")
    first, second = (random.randrange(len(lines)) for _ in range(2))
    what = random.randrange(3)
    if what == 0:
        del lines[first]
    elif what == 1:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return _replaced(content, 0, 4 * _HEADER_BYTES, b"\n".join(lines))


_CHANGES: list[Callable[[bytes, Random], bytes]] = [_cut, _noise, _inserted, _removed, _repeated]
_CHANGES += [_line, *(2 * [_flip, _number]), *(3 * [_edge])]


def _other_value(value: Any, random: Random) -> Any:
    """A JSON value with one of its parts exchanged, removed, or added."""
    children = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        children = list(range(len(value)))
    if not children or random.random() < 0.1:
        return random.choice(_VALUES)
    copy, child, what = value.copy(), random.choice(children), random.random()
    if what < 0.1:
        del copy[child]
    elif what < 0.2:
        if isinstance(copy, dict):
            copy[random.choice(("x", "format_version", "path", "id"))] = random.choice(_VALUES)
        else:
            copy.append(random.choice(_VALUES))
    else:
        copy[child] = _other_value(value[child], random)
    return copy


def png_mutant(content: bytes, random: Random) -> bytes:
    """A mutant whose chunks have the checksums that their reader wants, more often than not."""
    changed = bytearray(mutant(content, random))
    place = 8
    while random.random() < 0.9 and place + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, place)
        end = place + 8 + length
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


def tfrecord(payload: bytes) -> bytes:
    """A record with the checksums that TFRecord wants, so that its content is looked at."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)
