"""What a run tells: `metrics.jsonl`, TensorBoard events, the progress bar."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from mmsr_jax.tensorboard_events import TensorboardEvents

_METRICS = "metrics.jsonl"
_MOST_STEPS = 1 << 53  # so that a float holds the step
_IN_THE_BAR = ("generator_loss", "structure_clinical", "adversarial_micro", "correlation")


class RunLog:
    """The log of one run, continued at `start_step`: what was logged beyond it is dropped.

    `metrics.jsonl` has a line for every logging and validation, without times, so that a resumed
    run ends with the same file as one that was never stopped.
    """

    def __init__(
        self, workdir: Path, start_step: int, steps: int, elsewhere: epath.Path | None = None
    ):
        """Open it.

        Args:
          workdir: the run's directory.
          start_step: the first step is the one after it.
          steps: of the whole run.
          elsewhere: directory of a copy, for a machine that does not stay.
        """
        self._path = workdir / _METRICS
        self._copy = elsewhere / _METRICS if elsewhere else None
        if self._copy and not self._path.exists() and self._copy.exists():
            self._path.write_text(self._copy.read_text())
        kept = [line for line in _lines(self._path) if line["step"] <= start_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self._path)
        self._file, self._unwritten = self._path.open("ab", buffering=0), b""
        self._speed: dict[str, str] = {}
        self._board = TensorboardEvents(workdir / "tensorboard", start_step + 1)
        self._bar = tqdm(total=steps, initial=start_step, unit="step", dynamic_ncols=True)

    def scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        """Log named values of a group, "train" or "validation"."""
        self._unwritten += f"{json.dumps({'step': step, 'group': group, **values})}\n".encode()
        with self._going_on():
            self._write_lines()
            self._board.scalars({f"{group}/{name}": value for name, value in values.items()}, step)
        if group == "train":
            shown = {name: f"{values[name]:.3f}" for name in _IN_THE_BAR if name in values}
            self._bar.set_postfix(shown | self._speed, refresh=False)

    def _write_lines(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Training does not end because its log has no room."""
        try:
            yield
        except OSError as error:
            self.message(f"WARNING: the log of {self._path.parent} cannot be written ({error})")

    def speed(self, step: int, values: dict[str, float]) -> None:
        """Show and log what `mmsr_jax.speed` measured; never the same twice, so not in the file."""
        with self._going_on():
            self._board.scalars({f"speed/{name}": value for name, value in values.items()}, step)
        if values:
            self._speed = {
                "pairs/s": f"{values['patch_pairs_per_second']:.3g}",
                "MFU": f"{values['model_flops_utilization']:.0%}",
            }

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Log a uint8 (height, width) picture."""
        with self._going_on():
            self._board.image(name, picture, step)

    def advance(self, steps: int) -> None:
        """Some more steps are done."""
        self._bar.update(steps)

    def message(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self._bar.write(text)

    def keep_copy(self) -> None:
        """Bring the copy up to date, if there is one."""
        if self._copy:
            try:
                self._copy.write_text(self._path.read_text())
            except Exception as error:  # whatever a bucket's client raises
                self.message(f"WARNING: {self._copy} cannot be written ({error})")

    def close(self) -> None:
        """Flush everything to disk."""
        with self._going_on():
            self._write_lines()
            self._board.close()
        self._bar.close()
        self._file.close()


class NoLog(RunLog):
    """The log of a process that leaves logging to the first one."""

    def __init__(self) -> None:
        pass

    def _nothing(self, *_: object) -> None:
        pass

    scalars = speed = image = advance = message = keep_copy = close = _nothing  # type: ignore[assignment]


def logged_scalars(workdir: Path) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of everything in a run's `metrics.jsonl`, as "group/name"."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in _lines(workdir / _METRICS):
        step, group = line.pop("step"), line.pop("group")
        for name, value in line.items():
            steps, values = curves.setdefault(f"{group}/{name}", ([], []))
            steps.append(step)
            values.append(value)
    return curves


def _lines(path: Path) -> list[dict]:
    """Logged lines; what a killed run left half-written is dropped, and what was never logged."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if _is_logged(line):
                lines.append(line)
    return lines


def _is_logged(line: Any) -> bool:
    if not isinstance(line, dict) or not all(map(str.isidentifier, line)):
        return False
    step, group, values = line.get("step"), line.get("group"), line.keys() - {"step", "group"}
    return (
        type(step) is int
        and 0 <= step < _MOST_STEPS
        and isinstance(group, str)
        and group.isidentifier()
        and all(type(line[name]) is float for name in values)
    )
