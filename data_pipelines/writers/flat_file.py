"""A header and then the slices as they are, each at its place in one file."""

from pathlib import Path

import numpy as np

from data_pipelines.writers.slice_writer import VolumeSpec
from data_pipelines.writers.staging import staged, write_at


class FlatFile:
    """Writes NIfTI, MetaImage and NRRD; a slice that is missing takes no room on the disk."""

    def __init__(self, payload: Path, spec: VolumeSpec, header: bytes) -> None:
        self.payload = payload
        self._spec = spec
        self._header = header

    def create(self) -> None:
        """See `SliceWriter`."""
        if self.payload.exists():
            return
        with staged(self.payload, self.payload.parent) as partial, open(partial, "wb") as file:
            file.write(self._header)
            file.truncate(len(self._header) + self._spec.shape[0] * self._spec.plane_bytes)

    def write(self, index: int, plane: np.ndarray) -> None:
        """See `SliceWriter`."""
        offset = len(self._header) + index * self._spec.plane_bytes
        write_at(self.payload, offset, self._spec.stored(plane).data)

    def finish(self) -> None:
        """See `SliceWriter`."""
