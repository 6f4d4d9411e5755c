"""Events for TensorBoard, written in the calling thread.

tensorboardX's own writer has a thread that dies of a full disk, for which training would then wait.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

_FLUSH_S = 30.0


class TensorboardEvents:
    """The events of a run; after a failure they go on in another file."""

    def __init__(self, directory: Path, start_step: int):
        """Begin with `start_step`: what the directory has of it and of later steps is void."""
        self._directory, self._start_step, self._files = directory, start_step, 0
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add named values.

        Raises:
          OSError: they cannot be written, and are lost.
        """
        self._add([summary.scalar(name, value) for name, value in values.items()], step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Add a uint8 (height, width) picture; raises as `scalars`."""
        self._add([summary.image(name, picture, dataformats="HW")], step)

    def close(self) -> None:
        """Write what is buffered; raises as `scalars`."""
        if self._writer:
            self._writer.close()

    def _add(self, summaries: Sequence[Summary], step: int) -> None:
        try:
            self._writer = self._writer or self._opened()
            for one in summaries:
                event = Event(step=step, wall_time=time.time(), summary=one)
                self._writer.write_event(event)
            if time.monotonic() - self._flushed > _FLUSH_S:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError:
            self._writer = None  # its last record may be cut off
            raise

    def _opened(self) -> EventsWriter:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._files += 1
        writer = EventsWriter(str(self._directory / "events"), f".{self._files}")
        if self._files == 1:
            begins = SessionLog(status=SessionLog.START)
            writer.write_event(Event(step=self._start_step, session_log=begins))
        return writer
