"""Contenders in processes of their own, so that the memory of each is its own."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders import CONTENDERS, Contender, Device, Variant
from data_pipelines.intensity import CLINICAL_WINDOW_HU
from mmsr_jax.host_memory import keep_host_memory

_HU_PER_UNIT = (CLINICAL_WINDOW_HU[1] - CLINICAL_WINDOW_HU[0]) / 2
_CONTEXT = multiprocessing.get_context("spawn")


class ContenderFailed(Exception):
    """It ended, as for want of memory."""


class Took(NamedTuple):
    """What a run took; other programs on the machine lengthen `seconds` the most.

    Attributes:
      seconds: by the clock.
      cpu_seconds: of all cores together.
    """

    seconds: float
    cpu_seconds: float


class RunningContender:
    """A contender that is warm and waits."""

    def __init__(self, connection: Connection, process: BaseProcess):
        self._connection = connection
        self._process = process
        self.warm_up: Took = self._answer()

    def run(self, slices: int) -> Took:
        """What the first `slices` slices take.

        Raises:
          ContenderFailed: see there.
        """
        return self._ask(slices)

    def figures(self) -> dict[str, Any]:
        """`peak_mib`, `device_peak_mib`, `seam_hu` and the path of its `first` slice.

        Raises:
          ContenderFailed: see there.
        """
        return self._ask(None)

    def _ask(self, question: int | None) -> Any:
        with contextlib.suppress(OSError):  # the answer tells that it has ended
            self._connection.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            status = self._process.exitcode  # -9: the system ended it for want of memory
            raise ContenderFailed(f"its process ended with status {status}") from error
        if isinstance(answer, ContenderFailed):
            raise answer
        return answer


@contextlib.contextmanager
def running(
    name: str, variant: Variant, folder: Path, device: Device, slices: int
) -> Iterator[RunningContender]:
    """A contender in a process of its own, after a first run on `slices` slices.

    Raises:
      ContenderFailed: see there.
    """
    ours, its = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(its, name, variant, folder, device, slices))
    process.start()
    its.close()
    try:
        yield RunningContender(ours, process)
    finally:
        ours.close()
        process.join()


def in_a_process(function: Any, *arguments: Any) -> Any:
    """What a function returns that is called in a process of its own."""
    with _CONTEXT.Pool(1) as pool:
        return pool.apply(function, arguments)


def _serve(
    connection: Connection, name: str, variant: Variant, folder: Path, device: Device, slices: int
) -> None:
    """Run once, then answer questions until the connection is closed."""
    # JAX would take most of the device's memory, and the contenders live side by side.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if device == "cpu":
        os.environ |= {"JAX_PLATFORMS": "cpu"}
    if variant.host_memory_kept:
        keep_host_memory()
    with contextlib.suppress(EOFError):
        try:
            contender = CONTENDERS[name](folder, device, variant)
            connection.send(_took(contender, slices))
            while True:
                question = connection.recv()
                if question is None:
                    connection.send(_figures(contender, folder / f"{name}.npy"))
                else:
                    connection.send(_took(contender, question))
        except (MemoryError, RuntimeError) as error:  # of PyTorch and JAX without memory as well
            connection.send(ContenderFailed(str(error).splitlines()[0]))


def _took(contender: Contender, slices: int) -> Took:
    start, cpu_start = time.perf_counter(), time.process_time()
    contender.run(slices)
    return Took(time.perf_counter() - start, time.process_time() - cpu_start)


def _figures(contender: Contender, path: Path) -> dict[str, Any]:
    peaks = {"peak_mib": _peak_mib(), "device_peak_mib": contender.device_peak_mib()}
    first = contender.first()
    np.save(path, first)
    seam = None if contender.whole is None else largest_hu(first, contender.whole())
    return peaks | {"seam_hu": seam, "first": path}


def largest_hu(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two images in [-1, 1], in Hounsfield units."""
    return float(np.abs(a - b).max()) * _HU_PER_UNIT


def _peak_mib() -> float:
    """The most main memory that this process has held."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024
