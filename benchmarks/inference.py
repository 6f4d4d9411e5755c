"""Command line: time and memory of super-resolving slices, against PyTorch and MONAI.

    pip install -e .[benchmark]
    python -m benchmarks.inference --slices=4 --size=512 --runs=3 --output=inference.json

G1 of the preset `paper` with random weights, the same for all, on the same float32 slices of smooth
noise. PyTorch runs in its best form: channels last, inference mode, all cores, and whichever is
faster of compiled or not and of host memory kept or not, which is tried before on one slice. Every
contender has a process of its own and runs once to warm up; then they take turns. Both frameworks
keep their own default precision of float32 convolutions on a GPU. Linux only.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import app, flags

from benchmarks import processes
from benchmarks.contenders import (
    CONTENDERS,
    OUR_VARIANT,
    OURS,
    TRIED_AS,
    VARIANTS,
    Device,
    Variant,
)
from data_pipelines.command_line import parse_flags
from data_pipelines.errors import UserError, reported_in_one_line

_SLICES = flags.DEFINE_integer("slices", 4, "How many.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 512, "Side of a slice in pixels.", lower_bound=128)
_RUNS = flags.DEFINE_integer("runs", 3, "Repetitions that count, in turns.", lower_bound=1)
_DEVICE = flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where the networks run.")
_OUTPUT = flags.DEFINE_string("output", "inference.json", "JSON file to write.")

_PACKAGES = ("mmsr-jax", "jax", "jaxlib", "torch", "monai", "numpy", "zarr")

Results = dict[str, dict[str, Any]]


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; see --help")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found = processes.in_a_process(_prepare, folder, _SLICES.value, _SIZE.value)
            device = cast("Device", found if _DEVICE.value == "auto" else _DEVICE.value)
            load_before = os.getloadavg()
            trials = {
                name: _trials(name, folder, device) for name in sorted(set(TRIED_AS.values()))
            }
            results = _measure(folder, device, trials)
        report = {
            "command": ["python", "-m", "benchmarks.inference", *sys.argv[1:]],
            "slices": _SLICES.value,
            "size": _SIZE.value,
            "runs": _RUNS.value,
            "machine": _machine(device),
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "trials_s_per_slice": trials,
            "results": results,
        }
        Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")
        print(_table(results))


def _prepare(folder: Path, slices: int, size: int) -> Device:
    """Write the inputs; "gpu" where both frameworks have one."""
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    import jax
    import torch

    from benchmarks.inputs import write_inputs

    write_inputs(folder, slices, size)
    return "gpu" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def _trials(name: str, folder: Path, device: Device) -> list[dict[str, Any]]:
    """Seconds for one slice in every variant; None if it failed."""
    trials = []
    for variant in VARIANTS:
        seconds, failure = None, None
        try:
            with processes.running(name, variant, folder, device, slices=1) as contender:
                seconds = min(contender.run(slices=1).seconds for _ in range(2))
        except processes.ContenderFailed as error:
            failure = str(error)
        trials.append(variant._asdict() | {"seconds": seconds, "failure": failure})
        _progress(f"{name}: {trials[-1]}")
    return trials


def _measure(folder: Path, device: Device, trials: dict[str, list[dict[str, Any]]]) -> Results:
    """Every contender in its fastest variant, in turns."""
    results: Results = {name: {"variant": _variant(name, trials)} for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, result in results.items():
            variant = Variant(**result["variant"])
            with _failure_noted(result):
                contenders[name] = stack.enter_context(
                    processes.running(name, variant, folder, device, _SLICES.value)
                )
                result |= {"warm_up": contenders[name].warm_up._asdict(), "runs": []}
        for _ in range(_RUNS.value):
            for name, contender in contenders.items():
                with _failure_noted(results[name]):
                    took = contender.run(_SLICES.value)._asdict()
                    results[name]["runs"].append(took | {"load": os.getloadavg()[0]})
                    _progress(f"{name}: {results[name]['runs'][-1]}")
        for name, contender in contenders.items():
            with _failure_noted(results[name]):
                results[name] |= contender.figures()
        _compare(results)
    return results


def _variant(name: str, trials: dict[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """The fastest one of PyTorch; ours has one."""
    if name not in TRIED_AS:
        return OUR_VARIANT._asdict()
    best = min(trials[TRIED_AS[name]], key=lambda trial: trial["seconds"] or math.inf)
    return {field: best[field] for field in Variant._fields}


@contextlib.contextmanager
def _failure_noted(result: dict[str, Any]) -> Any:
    try:
        yield
    except processes.ContenderFailed as error:
        result["failure"] = str(error)


def _compare(results: Results) -> None:
    """How far PyTorch's and our slices are apart; drop the slices."""
    firsts = {
        name: np.load(result.pop("first")) for name, result in results.items() if "first" in result
    }
    for name, first in firsts.items():
        results[name]["from_ours_hu"] = processes.largest_hu(first, firsts[OURS])


def _machine(device: Device) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": device,
        "device_name": processes.in_a_process(_gpu_name) if device == "gpu" else models[0],
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {package: importlib.metadata.version(package) for package in _PACKAGES}


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _table(results: Results) -> str:
    """One row a contender; the spread is half of the range of its runs."""
    headings = (
        "",
        "slices/s",
        "s per slice",
        "±",
        "CPU s",
        "peak MB",
        "seam HU",
        "from ours HU",
        "how",
    )
    rows = [headings, *(_row(name, result) for name, result in results.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]])
        for row in rows
    )


def _row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    if "failure" in result:
        return name, *["–"] * 7, result["failure"]
    per_slice = [run["seconds"] / _SLICES.value for run in result["runs"]]
    cpu = statistics.median(run["cpu_seconds"] for run in result["runs"]) / _SLICES.value
    median, spread = statistics.median(per_slice), (max(per_slice) - min(per_slice)) / 2
    peak = result["device_peak_mib"] or result["peak_mib"]
    seam = "–" if result["seam_hu"] is None else f"{result['seam_hu']:.2g}"
    return (
        name,
        f"{1 / median:.3f}",
        f"{median:.2f}",
        f"{spread:.2f}",
        f"{cpu:.2f}",
        f"{peak * 1.048576:.0f}",
        seam,
        f"{result['from_ours_hu']:.2g}",
        ", ".join(way.replace("_", " ") for way, used in result["variant"].items() if used),
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
