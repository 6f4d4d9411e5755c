"""Reading, computing and writing at the same time, with a bounded number of slices in memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")


class Stages:
    """Seconds spent in each stage, over all threads; stages overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a stage."""

        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent = time.perf_counter() - start
                with self._lock:
                    self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return call


def overlap(
    jobs: Sequence[Job],
    read: Callable[[Job], Read],
    compute: Callable[[Read], Computed],
    write: Callable[[Computed], Written],
    *,
    writers: int,
    done: Callable[[Written], None],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Run `write(compute(read(job)))` for every job, each stage of another job than the next's.

    The next job is read while one is computed, and at most `writers` are being written, in threads
    of their own. The first exception of any stage is raised, after what is being written has ended.

    Args:
      jobs: in order.
      read: in a thread of its own.
      compute: in this thread.
      write: in several threads.
      writers: how many.
      done: called in this thread with what each `write` returned.
      stopped: asked before every job; then what is being written is finished.

    Returns:
      Seconds spent in each stage, by its name.

    Raises:
      KeyboardInterrupt: it was stopped.
    """
    stages = Stages()
    read, compute, write = (
        stages.timed(name, stage)
        for name, stage in (("read", read), ("compute", compute), ("write", write))
    )
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(writers) as writing:
        written: deque[Future] = deque()
        for data in _read_ahead(jobs, read, reading):
            result = compute(data)
            if len(written) == writers:
                done(written.popleft().result())
            written.append(writing.submit(write, result))
            if stopped():
                break
        while written:
            done(written.popleft().result())
    if stopped():
        raise KeyboardInterrupt
    return stages.seconds


def _read_ahead(
    jobs: Iterable[Job], read: Callable[[Job], Read], pool: ThreadPoolExecutor
) -> Iterable[Read]:
    """What is read of each job, while the next is being read."""
    ahead: Future | None = None
    for job in jobs:
        following = pool.submit(read, job)
        if ahead is not None:
            yield ahead.result()
        ahead = following
    if ahead is not None:
        yield ahead.result()
