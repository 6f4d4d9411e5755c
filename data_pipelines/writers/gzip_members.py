"""A flat file in gzip: one member for the header and one for each slice."""

import gzip
import shutil
from pathlib import Path

import numpy as np

from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import staged

_FASTEST = 1  # noise, which most of a scan is, hardly gets smaller at other levels


class GzipMembers:
    """Writes .nii.gz; the members are files in the working folder until they are joined."""

    def __init__(self, payload: Path, spec: VolumeSpec, header: bytes) -> None:
        self.payload = payload
        self._spec = spec
        self._header = header
        self._members = payload.parent / "members"

    def create(self) -> None:
        """See `SliceWriter`."""
        self._members.mkdir(exist_ok=True)
        self._write_member("header", self._header)

    def write(self, index: int, plane: np.ndarray) -> None:
        """See `SliceWriter`."""
        self._write_member(str(index), self._spec.stored(plane).data)

    def finish(self) -> None:
        """Join the members, which stay, so that a killed process loses nothing."""
        with staged(self.payload, self.payload.parent) as partial, open(partial, "wb") as file:
            for name in ("header", *map(str, range(self._spec.shape[0]))):
                with open(self._members / name, "rb") as member:
                    shutil.copyfileobj(member, file)

    def _write_member(self, name: str, data: bytes | memoryview) -> None:
        with staged(self._members / name, self.payload.parent) as partial:
            # Without a time stamp, so that the same slice gives the same bytes.
            partial.write_bytes(gzip.compress(data, _FASTEST, mtime=0))
