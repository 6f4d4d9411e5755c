"""What a benchmark prints and writes."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device import Device
from benchmarks.machine import machine


def progress(line: str) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in text: the first and the last to the left, the others to the right."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]])
        for line in lines
    )


def write_report(
    path: str, module: str, device: Device, packages: Sequence[str], report: Mapping[str, Any]
) -> None:
    """Write a report as JSON, after the command and the machine."""
    header = {
        "command": ["python", "-m", module, *sys.argv[1:]],
        "machine": machine(device, packages),
        "load_average_after": os.getloadavg(),
    }
    Path(path).write_text(json.dumps(header | dict(report), indent=2) + "\n")
