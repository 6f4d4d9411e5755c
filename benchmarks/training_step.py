"""Command line: time and memory of a training step, against the same step in PyTorch.

    pip install -e .[benchmark]
    python -m benchmarks.training_step --config=configs/cyclegan.py --batch_sizes=1,4 --runs=5

Any field of the configuration can be overridden, as in `mmsr_jax.main`. Both sides train the same
networks from the same weights on the same random images, which lie on the device. PyTorch runs in
its best form for each batch size: fused Adam, all cores, and the fastest of what is tried before:
channels last or not, host memory kept or not, then torch.compile or not, with CUDA graphs or not.
`--dtype=bfloat16` is our compute dtype and PyTorch's autocast; with float32 both frameworks keep
their own default precision of convolutions on a GPU. Every contender has a process of its own and
nothing compiled before; then they take turns. Linux only.

The columns: pairs of patches a second; seconds of a step, half of the range of its runs, seconds of
both losses without gradients, of the rest (backward and update); CPU seconds of a step; the peak of
the device's memory, or of the process on a CPU; seconds of the first step, in which all is
compiled; the largest difference of a loss term of PyTorch's first step from ours (SR-UNIT's are
random); our pairs a second over PyTorch's; and how it ran.
"""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.device import Device, chosen_device
from benchmarks.processes import RunningContender, failure_noted, in_a_process, running
from benchmarks.report import progress, table, write_report
from benchmarks.training_contenders import (
    Config,
    OurTraining,
    TorchTraining,
    Variant,
    compiled_variants,
    uncompiled_variants,
    write_weights,
)
from benchmarks.trials import Trial, fastest, trials
from data_pipelines.errors import UserError, reported_in_one_line
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags

_CONFIG = define_config()
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "4"], "Pairs of patches in a step.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the networks.")
_RUNS = flags.DEFINE_integer("runs", 5, "Repetitions that count, in turns.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps in a run.", lower_bound=1)
_DEVICE = flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where the networks run.")
_OUTPUT = flags.DEFINE_string("output", "training_step.json", "JSON file to write.")

_PACKAGES = ("mmsr-jax", "jax", "jaxlib", "flax", "optax", "torch", "numpy")
_OURS, _TORCH = "mmsr-jax", "PyTorch"
_DETERMINISTIC = ("cyclegan",)  # SR-UNIT's codes have noise

Results = dict[str, dict[str, Any]]  # by contender


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        configs = _configs(argv)
        device = chosen_device(_DEVICE.value)
        load_before = os.getloadavg()
        results = {config["batch_size"]: _measure(config, device) for config in configs}
        report = {
            "config": configs[0] | {"batch_size": list(results)},
            "runs": _RUNS.value,
            "steps": _STEPS.value,
            "load_average_before": load_before,
            "results": results,
        }
        write_report(_OUTPUT.value, "benchmarks.training_step", device, _PACKAGES, report)
        print(_table(results))


def _configs(argv: list[str]) -> list[Config]:
    """One for each batch size."""
    from benchmarks.torch_peer.supported import check_supported
    from mmsr_jax.config import check_config

    chosen = chosen_config(_CONFIG, argv)
    configs = []
    for text in _BATCH_SIZES.value:
        if not text.isdecimal():
            raise UserError(f"--batch_sizes: {text!r} must be a number, as in --batch_sizes=1,4")
        config = dataclasses.replace(chosen, batch_size=int(text), compute_dtype=_DTYPE.value)
        check_config(config)
        check_supported(config)
        configs.append(dataclasses.asdict(config))
    return configs


def _measure(config: Config, device: Device) -> Results:
    """Both sides at one batch size, PyTorch in its fastest variant, in turns."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        in_a_process(write_weights, folder, config)
        tried = _trials(config, device, folder)
        best = _variant(fastest(tried))
        results: Results = {
            _OURS: {"how": ["host memory kept"]},
            _TORCH: {
                "how": [way.replace("_", " ") for way, used in best._asdict().items() if used],
                "trials_s_per_step": tried,
            },
        }
        entering = {
            _OURS: running(OurTraining, config, device),
            _TORCH: running(TorchTraining, config, device, folder, best),
        }
        contenders = {}
        for name, process in entering.items():
            with failure_noted(results[name]):
                contenders[name] = stack.enter_context(process)
        _race(contenders, results)
    if config["method"] in _DETERMINISTIC:
        _compare(results)
    return results


def _race(contenders: dict[str, RunningContender], results: Results) -> None:
    """Add every figure of the contenders to the results."""
    _call_first("train", contenders, results)
    for name, contender in contenders.items():
        with failure_noted(results[name]):
            results[name]["first_terms"] = contender.call("loss_terms")
    _take_turns("train", contenders, results)
    for name, contender in contenders.items():
        with failure_noted(results[name]):
            results[name] |= contender.call("peaks_mib")
    _call_first("forward", contenders, results)
    _take_turns("forward", contenders, results)


def _compare(results: Results) -> None:
    """How far the terms of PyTorch's and our first step are apart."""
    ours, theirs = (results[name].get("first_terms") for name in (_OURS, _TORCH))
    if ours and theirs:
        results[_TORCH]["from_ours"] = max(abs(ours[name] - theirs[name]) for name in ours)


def _trials(config: Config, device: Device, folder: Path) -> list[Trial]:
    """Seconds of a step of PyTorch: every uncompiled variant, then the fastest one compiled."""

    def seconds(variant: Variant) -> float:
        with running(TorchTraining, config, device, folder, variant) as contender:
            contender.call("train", 1)
            return min(contender.timed("train", _STEPS.value).seconds for _ in range(2)) / (
                _STEPS.value
            )

    name = f"{_TORCH}, batch {config['batch_size']}"
    uncompiled = trials(name, uncompiled_variants(device), seconds)
    compiled = compiled_variants(_variant(fastest(uncompiled)), device)
    return uncompiled + trials(name, compiled, seconds)


def _variant(trial: Trial) -> Variant:
    return Variant(**{field: trial[field] for field in Variant._fields})


def _call_first(method: str, contenders: dict[str, RunningContender], results: Results) -> None:
    """What the first call takes, which compiles."""
    for name, contender in contenders.items():
        with failure_noted(results[name]):
            first = contender.timed(method, 1)
            results[name][method] = {"first": first._asdict(), "runs": []}
            progress(f"{name}, {method}: first {first}")


def _take_turns(method: str, contenders: dict[str, RunningContender], results: Results) -> None:
    """What each run takes."""
    for _ in range(_RUNS.value):
        for name, contender in contenders.items():
            with failure_noted(results[name]):
                took = contender.timed(method, _STEPS.value)._asdict()
                results[name][method]["runs"].append(took | {"load": os.getloadavg()[0]})
                progress(f"{name}, {method}: {results[name][method]['runs'][-1]}")


def _table(results: dict[int, Results]) -> str:
    """One row a contender and batch size."""
    headings = (
        "",
        "batch",
        "pairs/s",
        "s per step",
        "±",
        "forward s",
        "rest s",
        "CPU s",
        "peak MB",
        "first step s",
        "from ours",
        "ours/PyTorch",
        "how",
    )
    return table(headings, list(_rows(results)))


def _rows(results: dict[int, Results]) -> Iterator[tuple[str, ...]]:
    for batch_size, contenders in results.items():
        for name, result in contenders.items():
            if "failure" in result:
                yield name, str(batch_size), *["–"] * 10, result["failure"]
                continue
            per_step = [run["seconds"] / _STEPS.value for run in result["train"]["runs"]]
            step, forward = (_median(result, method, "seconds") for method in ("train", "forward"))
            yield (
                name,
                str(batch_size),
                f"{batch_size / step:.3g}",
                f"{step:.3g}",
                f"{(max(per_step) - min(per_step)) / 2:.2g}",
                f"{forward:.3g}",
                f"{step - forward:.3g}",
                f"{_median(result, 'train', 'cpu_seconds'):.3g}",
                f"{(result['device_peak_mib'] or result['peak_mib']) * 1.048576:.0f}",
                f"{result['train']['first']['seconds']:.1f}",
                f"{result['from_ours']:.1g}" if "from_ours" in result else "",
                _ratio(contenders) if name == _OURS else "",
                ", ".join(result["how"]),
            )


def _median(result: dict[str, Any], method: str, unit: str) -> float:
    """Of a step."""
    return statistics.median(run[unit] / _STEPS.value for run in result[method]["runs"])


def _ratio(contenders: Results) -> str:
    if any("failure" in result for result in contenders.values()):
        return "–"
    ours, theirs = (_median(contenders[name], "train", "seconds") for name in (_OURS, _TORCH))
    return f"{theirs / ours:.2f}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
