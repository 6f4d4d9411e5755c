"""Command line: measure a trained run.

    python -m mmsr_jax.evaluate --run=runs/cyclegan [--clinical=SCANS] [--micro=IMAGES]

On phantoms with a known truth (structure, airways, hallucination), on the dataset's held-out pairs
and validation patches (realism), on real micro images degraded to clinical resolution, and on real
scans (consistency); beside bicubic and nearest interpolation. Writes `evaluation.json`,
`comparison.png` and `report.html` into the run.
"""

from pathlib import Path

from absl import app, flags, logging

from data_pipelines.command_line import parse_flags
from data_pipelines.errors import UserError, reported_in_one_line

_RUN = flags.DEFINE_string("run", None, "Run directory of training.", required=True)
_DATA = flags.DEFINE_string("data", None, "Prepared dataset; the run's own if not given.")
_CLINICAL = flags.DEFINE_multi_string(
    "clinical", [], "Chest scans in Hounsfield units: files, folders or patterns."
)
_MICRO = flags.DEFINE_multi_string(
    "micro", [], "Micro images: a file, folder or pattern; each flag is a table of its own."
)
_MICRO_INVERTED = flags.DEFINE_multi_string(
    "micro_inverted", [], "The same of images with bright air, as in electron microscopy."
)
_PHANTOMS = flags.DEFINE_integer("phantoms", 6, "Number of phantoms.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; see --help")
        if not _RUN.value:
            raise UserError("--run is missing; --help lists all flags")
        # JAX starts after the cheap checks.
        from mmsr_jax.compilation_cache import enable_compilation_cache
        from mmsr_jax.evaluation.real_images import lung_squares, micro_slices
        from mmsr_jax.host_memory import keep_host_memory
        from mmsr_jax.inference.trained import load_model
        from mmsr_jax.report.run_report import report_run

        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
        keep_host_memory()
        enable_compilation_cache()
        model = load_model(_RUN.value, _CHECKPOINT.value)
        micro = {
            Path(path).name: micro_slices([path], model.scale, inverted=inverted)
            for flag, inverted in ((_MICRO, False), (_MICRO_INVERTED, True))
            for path in flag.value
        }
        if len(micro) < len(_MICRO.value + _MICRO_INVERTED.value):
            raise UserError("two sets of micro images have one name; rename a folder or file")
        clinical = lung_squares(_CLINICAL.value, model.window_hu) if _CLINICAL.value else []
        print(
            report_run(
                Path(_RUN.value),
                model,
                dataset=Path(_DATA.value) if _DATA.value else None,
                clinical=clinical,
                micro=micro,
                phantoms=_PHANTOMS.value,
            )
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
