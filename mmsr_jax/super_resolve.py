"""Command line: super-resolve a scan with a trained run or an exported model.

    python -m mmsr_jax.super_resolve --run=runs/cyclegan --input=SCAN --output=OUT.ome.zarr

The output's name says its format. Beside it appear a map of the disagreement with the scan and a
JSON report. A run that was stopped is continued by the same command.
"""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import app, flags, logging

from data_pipelines.command_line import parse_flags
from data_pipelines.errors import UserError, reported_in_one_line
from data_pipelines.geometry import Triple, as_triple

# JAX starts after the cheap checks.
if TYPE_CHECKING:
    from mmsr_jax.inference.finishing import Consistency, Outside
    from mmsr_jax.inference.model import SuperResolver

_RUN = flags.DEFINE_multi_string(
    "run", [], "Run directory of training; of several, given one by one, the mean is taken."
)
_MODEL = flags.DEFINE_multi_string("model", [], "Likewise, files of mmsr_jax.export.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which one of every run.")
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Scan: a DICOM folder or a slice in it, NIfTI, MetaImage, NRRD, OME-Zarr, TIFF or PNG stack.",
)
_SERIES = flags.DEFINE_string("series", None, "UID of the DICOM series, if a folder has several.")
_SPACING = flags.DEFINE_list("spacing", None, "x,y,z in mm of a scan that has none, such as TIFF.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "What to write: .ome.zarr, .nii, .nii.gz, .mha, .nrrd or .tif; a name without a dot: a folder "
    "with a DICOM series.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing outputs.")
_KEEP_PATIENT = flags.DEFINE_bool(
    "keep_patient",
    False,
    "A DICOM series keeps the scan's patient, study and frame of reference.",
)
_REGION = flags.DEFINE_string(
    "region", "", "Super-resolve only there: 'lung', or a mask file on the scan's grid."
)
_OUTSIDE = flags.DEFINE_enum(
    "outside", "bicubic", ["bicubic", "empty"], "What fills the pixels outside the region."
)
_ROI = flags.DEFINE_string(
    "roi",
    "",
    "Box that becomes the output: x0:x1,y0:y1,z0:z1 in voxels of the axial slices, or in "
    "millimetres (LPS) with 'mm' at the end.",
)
_SLICES = flags.DEFINE_string("slices", "", "Range of slices, first:end.")
_CONSISTENCY = flags.DEFINE_enum(
    "consistency",
    "none",
    ["none", "project"],
    "'project': averaging the output over the scan's pixels gives back the scan.",
)
_SELF_ENSEMBLE = flags.DEFINE_bool(
    "self_ensemble", False, "Mean and deviation over the eight turned and mirrored slices."
)
_DEVICE_MEMORY = flags.DEFINE_float(
    "device_memory", None, "GB of a device that may be used.", lower_bound=0.01
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Share the scan with the other processes of this cluster or pod."
)


def main(argv: list[str]) -> None:
    """Run the command line."""
    stop = threading.Event()
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, lambda *_: None)  # once is enough
        stop.set()  # Python ignores what is raised in some of its own callbacks
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        with reported_in_one_line():
            _check_flags(argv)
            _super_resolve(stop.is_set)
    except KeyboardInterrupt as interrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(128 + (interrupt.args or (signal.SIGTERM,))[0])


def _super_resolve(stopped: Callable[[], bool]) -> None:
    import jax

    from data_pipelines.unfinished_output import finish_publishing
    from mmsr_jax.compilation_cache import enable_compilation_cache
    from mmsr_jax.host_memory import keep_host_memory
    from mmsr_jax.inference.options import Options, output_paths
    from mmsr_jax.inference.scan import super_resolve_scan
    from mmsr_jax.processes import join_processes

    options = Options(
        scan=Path(str(_INPUT.value)),
        output=Path(str(_OUTPUT.value)),
        series=_SERIES.value,
        spacing_mm=_spacing(),
        overwrite=_OVERWRITE.value,
        region=_REGION.value,
        outside=cast("Outside", _OUTSIDE.value),
        roi=_ROI.value,
        slices=_SLICES.value,
        consistency=cast("Consistency", _CONSISTENCY.value),
        self_ensemble=_SELF_ENSEMBLE.value,
        device_memory_gb=_DEVICE_MEMORY.value,
        keep_patient=_KEEP_PATIENT.value,
    )
    if not _DISTRIBUTED.value and finish_publishing(options.output):
        print(f"{options.output}: an earlier run had made it, and it is in its place now")
        return
    output_paths(options, ensemble=False)
    keep_host_memory()
    if _DISTRIBUTED.value and not join_processes():
        raise UserError(
            "--distributed: JAX cannot join other processes, as it finds no cluster; set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    enable_compilation_cache()
    report = super_resolve_scan(
        list(_models()),
        options,
        progress=True,
        warn=lambda line: print(line, file=sys.stderr),
        stopped=stopped,
    )
    if jax.process_index() == 0:
        print(_summary(report))


def _check_flags(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    for flag in (_INPUT, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; --help lists all flags")
    if not any(_RUN.value + _MODEL.value):
        raise UserError("--run or --model is missing; --help lists all flags")
    if not math.isfinite(_DEVICE_MEMORY.value or 0):
        raise UserError(f"--device-memory={_DEVICE_MEMORY.value}: give a number of GB")


def _spacing() -> Triple | None:
    if _SPACING.value is None:
        return None
    try:
        spacing = as_triple([float(step) for step in _SPACING.value])
        if all(math.isfinite(step) and step > 0 for step in spacing):
            return spacing
    except ValueError:
        pass
    raise UserError(f"--spacing={','.join(_SPACING.value)}: give three lengths in mm, as x,y,z")


def _models() -> "Iterator[SuperResolver]":
    if _RUN.value:  # training's libraries are needed for its checkpoints alone
        from mmsr_jax.inference.trained import load_model

        for run in _RUN.value:
            yield load_model(run, _CHECKPOINT.value)
    if _MODEL.value:
        from mmsr_jax.inference.exported import load_exported

        for model in _MODEL.value:
            yield load_exported(Path(model))


def _summary(report: dict[str, Any]) -> str:
    columns, rows, slices = report["output"]["voxels"]
    x, y, z = report["output"]["spacing_mm"]
    lines = [f"{_OUTPUT.value}: {columns} x {rows} x {slices}, {x:.4g} x {y:.4g} x {z:.4g} mm"]
    if (agreement := report["consistency"]["output"]) is not None:
        before = report["consistency"]["network"]
        lines.append(
            f"agreement with the scan: mean difference {agreement['mae_hu']:.3g} HU, largest "
            f"{agreement['max_hu']:.3g} HU; of the network {before['mae_hu']:.3g} and "
            f"{before['max_hu']:.3g} HU"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
