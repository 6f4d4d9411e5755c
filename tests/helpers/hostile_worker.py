"""A process that reads what it is told to, and says of each reading how it ended.

    python tests/helpers/hostile_worker.py KIND FOLDER

A line on standard input is a path below FOLDER; the answer is a line of JSON with the "outcome",
"read", "refused" or "failed", and its "detail". It is a failure to raise anything but a `UserError`
of one line, to write outside of FOLDER, to start a program, to connect, to unpickle, and to take
more memory than a small file may.
"""

import json
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path

from hostile_subject import subject_of

from data_pipelines.errors import UserError

_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "pickle.find_class")
_FORBIDDEN += ("socket.connect", "os.posix_spawn")
_SPARE_BYTES = 1 << 30  # that the reading of a small file may take at most
_ADDRESSES_BYTES = 8 << 30  # so that what swells is an error here, not a full machine


class _Watch:
    """What the interpreter reports of forbidden deeds during a reading."""

    def __init__(self, folder: Path) -> None:
        self._allowed = (f"{folder.resolve()}/", "/dev/")
        self.deeds: list[str] = []
        self.on = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in _FORBIDDEN:
            self.deeds.append(f"{event} {arguments}")
        elif event == "open" and self._writes(arguments):
            self.deeds.append(f"wrote {arguments[0]}")

    def _writes(self, arguments: tuple) -> bool:
        path, _, flags = arguments
        if not isinstance(path, str | bytes) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            return False
        return not f"{os.path.realpath(os.fsdecode(path))}/".startswith(self._allowed)


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _outcome(kind: str, path: Path, watch: _Watch) -> dict[str, str]:
    watch.deeds.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before, watch.on = _peak_bytes(), True
    try:
        subject_of(kind).read(path)
        outcome = {"outcome": "read", "detail": ""}
    except UserError as error:
        outcome = {"outcome": "refused", "detail": str(error)}
        if not str(error).isprintable():
            outcome = {"outcome": "failed", "detail": f"not one line: {error!r}"}
    except BaseException:
        outcome = {"outcome": "failed", "detail": traceback.format_exc()}
    watch.on = False
    if watch.deeds:
        return {"outcome": "failed", "detail": "; ".join(watch.deeds)}
    if _peak_bytes() - before > _SPARE_BYTES:
        return {"outcome": "failed", "detail": f"{(_peak_bytes() - before) / 1e9:.1f} GB"}
    return outcome


def _main(kind: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    watch = _Watch(Path(folder))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    subject_of(kind).read(
        subject_of(kind).path(Path(folder, "original"))
    )  # what is imported late is imported now
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES_BYTES + _mapped(), -1))
    print(json.dumps({"outcome": "ready", "detail": ""}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_outcome(kind, Path(line.rstrip("\n")), watch)), file=answers, flush=True)


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    _main(*sys.argv[1:])
