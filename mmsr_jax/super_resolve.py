"""Command line: super-resolve a scan with a trained run.

    python -m mmsr_jax.super_resolve --run=runs/cyclegan --input=SCAN --output=FILE.nii.gz

Needs the checkpoint and the scan alone. The output is in Hounsfield units, `scale` times finer in
plane, with the scan's position and orientation.
"""

import signal
import sys
from pathlib import Path

from absl import app, flags, logging

from data_pipelines import volumes
from data_pipelines.command_line import parse_flags
from data_pipelines.dicom_series import is_dicom
from data_pipelines.errors import UserError, reported_in_one_line
from data_pipelines.geometry import Volume, axial

_RUN = flags.DEFINE_string("run", None, "Run directory of training.", required=True)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Scan: a DICOM folder or a slice in it, NIfTI, MetaImage or NRRD file.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write: .nii, .nii.gz, .mha or .nrrd.", required=True
)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
_SERIES = flags.DEFINE_string("series", None, "UID of the DICOM series, if a folder has several.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")


def super_resolve(
    run: Path,
    scan: Path,
    output: Path,
    *,
    checkpoint: str = "last",
    series: str | None = None,
    overwrite: bool = False,
) -> Volume:
    """Read a scan, super-resolve it, write the result; returns what was written.

    One file of a DICOM series stands for its folder.

    Raises:
      data_pipelines.errors.UserError: see its message; nothing is left half-written.
    """
    # JAX starts after the cheap checks.
    from mmsr_jax.compilation_cache import enable_compilation_cache
    from mmsr_jax.inference.model import load_model

    volumes.check_output(output, overwrite)
    scan = scan.absolute().parent if is_dicom(scan) else scan
    clinical = axial(volumes.read_volume(scan, series=series))
    volumes.check_hounsfield(clinical, str(scan))
    enable_compilation_cache()
    model = load_model(run, checkpoint)
    fine = model.volume(clinical, progress=True)
    volumes.write_volume(fine, output, overwrite=overwrite)
    return fine


def main(argv: list[str]) -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a partial output goes
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; see --help")
        for flag in (_RUN, _INPUT, _OUTPUT):
            if not flag.value:
                raise UserError(f"--{flag.name} is missing; --help lists all flags")
        fine = super_resolve(
            Path(_RUN.value),
            Path(_INPUT.value),
            Path(_OUTPUT.value),
            checkpoint=_CHECKPOINT.value,
            series=_SERIES.value,
            overwrite=_OVERWRITE.value,
        )
        slices, rows, columns = fine.array.shape
        x, y, z = fine.geometry.spacing_mm
        print(f"{_OUTPUT.value}: {columns} x {rows} x {slices}, {x:.4g} x {y:.4g} x {z:.4g} mm")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
