"""Contenders in processes of their own, so that the memory of each is its own."""

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

_CONTEXT = multiprocessing.get_context("spawn")


class ContenderFailed(Exception):
    """It ended, as for want of memory."""


class Took(NamedTuple):
    """What a call took; other programs on the machine lengthen `seconds` the most.

    Attributes:
      seconds: by the clock.
      cpu_seconds: of all cores together.
    """

    seconds: float
    cpu_seconds: float


class RunningContender:
    """A contender that waits in its process."""

    def __init__(self, connection: Connection, process: BaseProcess):
        self._connection = connection
        self._process = process
        self._answer()  # that it has been made

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the contender returns.

        Raises:
          ContenderFailed: see there.
        """
        return self._ask(method, *arguments)[0]

    def timed(self, method: str, *arguments: Any) -> Took:
        """What a method of the contender takes.

        Raises:
          ContenderFailed: see there.
        """
        return self._ask(method, *arguments)[1]

    def _ask(self, method: str, *arguments: Any) -> tuple[Any, Took]:
        with contextlib.suppress(OSError):  # the answer tells that it has ended
            self._connection.send((method, arguments))
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
def running(make: Callable[..., Any], *arguments: Any) -> Iterator[RunningContender]:
    """The contender that `make` returns, which a process of its own imports and calls.

    Raises:
      ContenderFailed: see there.
    """
    ours, its = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(its, make, arguments))
    process.start()
    its.close()
    try:
        yield RunningContender(ours, process)
    finally:
        ours.close()
        process.join()


@contextlib.contextmanager
def failure_noted(result: dict[str, Any]) -> Iterator[None]:
    """Put the message of a contender's first failure into `result`, as "failure"."""
    try:
        yield
    except ContenderFailed as error:
        result.setdefault("failure", str(error))


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that is called in a process of its own."""
    with _CONTEXT.Pool(1) as pool:
        return pool.apply(function, arguments)


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    """Make the contender, then call what is asked for until the connection is closed."""
    try:
        contender = make(*arguments)
        connection.send(None)
        while question := _received(connection):
            method, arguments = question
            connection.send(_timed(getattr(contender, method), arguments))
    except Exception as error:  # of a compiler too
        traceback.print_exc()
        message = str(error).strip() or type(error).__name__
        connection.send(ContenderFailed(message.splitlines()[0]))


def _received(connection: Connection) -> tuple[str, tuple] | None:
    """The next question; None once the connection is closed."""
    try:
        return connection.recv()
    except EOFError:
        return None


def _timed(function: Callable[..., Any], arguments: tuple) -> tuple[Any, Took]:
    start, cpu_start = time.perf_counter(), time.process_time()
    answer = function(*arguments)
    return answer, Took(time.perf_counter() - start, time.process_time() - cpu_start)
