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
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.device import Device, chosen_device
from benchmarks.inference_contenders import (
    CONTENDERS,
    OUR_VARIANT,
    OURS,
    TRIED_AS,
    VARIANTS,
    Variant,
    largest_hu,
    make_contender,
)
from benchmarks.processes import failure_noted, in_a_process, running
from benchmarks.report import progress, table, write_report
from benchmarks.trials import Trial, fastest, trials
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
        device = chosen_device(_DEVICE.value)
        load_before = os.getloadavg()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            in_a_process(_write_inputs, folder, _SLICES.value, _SIZE.value)
            tried = {name: _trials(name, folder, device) for name in sorted(set(TRIED_AS.values()))}
            results = _measure(folder, device, tried)
        report = {
            "slices": _SLICES.value,
            "size": _SIZE.value,
            "runs": _RUNS.value,
            "load_average_before": load_before,
            "trials_s_per_slice": tried,
            "results": results,
        }
        write_report(_OUTPUT.value, "benchmarks.inference", device, _PACKAGES, report)
        print(_table(results))


def _write_inputs(folder: Path, slices: int, size: int) -> None:
    from benchmarks.inference_inputs import write_inputs

    write_inputs(folder, slices, size)


def _trials(name: str, folder: Path, device: Device) -> list[Trial]:
    """Seconds for one slice in every variant."""

    def seconds(variant: Variant) -> float:
        with running(make_contender, name, folder, device, variant) as contender:
            contender.call("run", 1)
            return min(contender.timed("run", 1).seconds for _ in range(2))

    return trials(name, VARIANTS, seconds)


def _measure(folder: Path, device: Device, tried: dict[str, list[Trial]]) -> Results:
    """Every contender in its fastest variant, in turns."""
    results: Results = {name: {"variant": _variant(name, tried)} for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name, result in results.items():
            variant = Variant(**result["variant"])
            with failure_noted(result):
                contenders[name] = stack.enter_context(
                    running(make_contender, name, folder, device, variant)
                )
                warm_up = contenders[name].timed("run", _SLICES.value)
                result |= {"warm_up": warm_up._asdict(), "runs": []}
        for _ in range(_RUNS.value):
            for name, contender in contenders.items():
                with failure_noted(results[name]):
                    took = contender.timed("run", _SLICES.value)._asdict()
                    results[name]["runs"].append(took | {"load": os.getloadavg()[0]})
                    progress(f"{name}: {results[name]['runs'][-1]}")
        for name, contender in contenders.items():
            with failure_noted(results[name]):
                results[name] |= contender.call("figures")
    _compare(results)
    return results


def _variant(name: str, tried: dict[str, list[Trial]]) -> dict[str, bool]:
    """The fastest one of PyTorch; ours has one."""
    if name not in TRIED_AS:
        return OUR_VARIANT._asdict()
    best = fastest(tried[TRIED_AS[name]])
    return {field: best[field] for field in Variant._fields}


def _compare(results: Results) -> None:
    """How far PyTorch's and our slices are apart; drop the slices."""
    firsts = {name: result.pop("first") for name, result in results.items() if "first" in result}
    for name, first in firsts.items():
        results[name]["from_ours_hu"] = largest_hu(first, firsts[OURS])


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
    return table(headings, [_row(name, result) for name, result in results.items()])


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


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
