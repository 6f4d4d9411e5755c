"""Command line: run the processes of a training, or of anything that uses JAX, on this machine.

    python -m launch.local --processes=2 --devices=2 -- python -m mmsr_jax.main --config=...

Rehearses a pod: `--devices` lets every process see so many devices of its CPU. Process 0 prints as
if it ran alone; the lines of the others begin with their number. SIGTERM and SIGINT go to all
processes, a second one kills them. When a process fails, the others have a minute to stop by
themselves. The exit status is that of the first one that failed, or 143 if all were preempted. No
process outlives this one, however it ends.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import IO

from absl import app, flags

from data_pipelines.errors import reported_in_one_line
from launch.command import parse_flags_and_command

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
_DEVICES = flags.DEFINE_integer(
    "devices", None, "CPU devices of every process; without it, what JAX finds.", lower_bound=1
)
_RESTARTS = flags.DEFINE_integer(
    "restarts", 0, "Run the command again after a failure or preemption, so often.", lower_bound=0
)
_GRACE = flags.DEFINE_integer(
    "grace", 60, "Seconds to stop by themselves, for the others when one has failed.", lower_bound=0
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run, and run nothing.")

PREEMPTED, _KILLED = 128 + signal.SIGTERM, 128 + signal.SIGKILL
_POLL_S = 0.1


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        command = argv[1:]
        if _DRY_RUN.value:
            for variables in _environments():
                assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
                print(*assignments, shlex.join(command))
            return
        sys.exit(_run_with_restarts(command))


def _run_with_restarts(command: list[str]) -> int:
    for restart in range(_RESTARTS.value + 1):
        processes = _Processes(command)
        status = processes.wait()
        if status == 0 or processes.signals:
            break
        if restart < _RESTARTS.value:
            _say(f"status {status}; restart {restart + 1} of {_RESTARTS.value}")
    return status


class _Processes:
    """One attempt: the processes, from their start to the end of the last one."""

    def __init__(self, command: list[str]):
        self.signals = 0  # received by this process
        self._all: list[subprocess.Popen[bytes]] = []
        self._statuses: dict[int, int] = {}  # by process, in the order in which they ended
        self._printers: list[threading.Thread] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        self._reaper = _Reaper()
        for index, variables in enumerate(_environments()):
            process = subprocess.Popen(
                command,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if index else None,
                stderr=subprocess.STDOUT if index else None,
                start_new_session=True,  # Ctrl-C comes from here alone, and once
            )
            self._reaper.add(process.pid)
            self._all.append(process)
            if process.stdout:
                printer = threading.Thread(
                    target=_print_lines, args=(index, process.stdout), daemon=True
                )
                printer.start()
                self._printers.append(printer)

    def wait(self) -> int:
        """The exit status of the attempt."""
        deadline = float("inf")
        killed: set[int] = set()
        while len(self._statuses) < len(self._all):
            time.sleep(_POLL_S)
            self._note_ended()
            if any(self._statuses.values()) and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE.value
            if (time.monotonic() > deadline or self.signals > 1) and not killed:
                killed = set(range(len(self._all))) - set(self._statuses)
                for index in sorted(killed):
                    _say(f"process {index} did not stop; killed")
                    self._all[index].kill()
        self._reaper.reap()
        for printer in self._printers:
            printer.join()
        failed = [status for i, status in self._statuses.items() if status and i not in killed]
        if not failed:
            return _KILLED if killed else 0
        return next((status for status in failed if status != PREEMPTED), PREEMPTED)

    def _note_ended(self) -> None:
        for index, process in enumerate(self._all):
            status = process.poll()
            if status is None or index in self._statuses:
                continue
            self._statuses[index] = status if status >= 0 else 128 - status
            if status:
                _say(f"process {index} ended with status {self._statuses[index]}")

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signals += 1
        for process in self._all:
            process.send_signal(number)


class _Reaper:
    """A process that kills what is left of the others, even if this one was killed with -9.

    Every process leads a group of its own, so that what it has started goes with it. The reaper
    notices the end of this process by the end of the pipe between them.
    """

    _SCRIPT = (
        'while read -r group; do groups="$groups -$group"; done\n'
        "kill -s KILL -- $groups 2>/dev/null"
    )

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", self._SCRIPT], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def add(self, group: int) -> None:
        """Another group to kill in the end."""
        assert self._process.stdin
        print(group, file=self._process.stdin, flush=True)

    def reap(self) -> None:
        """Kill what is left now."""
        self._process.communicate()


def _environments() -> list[dict[str, str]]:
    """What the environment of every process has beside this one's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(_PROCESSES.value),
    }
    if _DEVICES.value:
        count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
        shared["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
        shared["JAX_PLATFORMS"] = "cpu"
    return [shared | {"JAX_PROCESS_ID": str(index)} for index in range(_PROCESSES.value)]


def _print_lines(index: int, lines: IO[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"{index}| ".encode() + line)
        sys.stdout.buffer.flush()


def _say(message: str) -> None:
    print(f"launch.local: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags_and_command)
