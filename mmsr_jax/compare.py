"""Command line: runs side by side.

    python -m mmsr_jax.compare --runs=runs/cyclegan,runs/unit --output=comparison

Runs of one configuration name are its seeds; name variants with `--config.name` when training.
Writes tables (Markdown and JSON), the figure of a bronchus, a tumour and a vessel by every method,
and `report.html`. A run that was not evaluated yet is evaluated on its own dataset.
"""

from pathlib import Path

from absl import app, flags, logging

from data_pipelines.command_line import parse_flags
from data_pipelines.errors import UserError, reported_in_one_line

_RUNS = flags.DEFINE_list("runs", None, "Run directories, comma-separated.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.", required=True)
_DATA = flags.DEFINE_string("data", None, "Prepared dataset for runs not evaluated yet.")
_CLINICAL = flags.DEFINE_multi_string(
    "clinical", [], "Chest scans to show as well: files, folders or patterns."
)


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; see --help")
        for flag in (_RUNS, _OUTPUT):
            if not flag.value:
                raise UserError(f"--{flag.name} is missing; --help lists all flags")
        # JAX starts after the cheap checks.
        from data_pipelines.intensity import CLINICAL_WINDOW_HU
        from mmsr_jax.compilation_cache import enable_compilation_cache
        from mmsr_jax.evaluation.real_images import lung_squares
        from mmsr_jax.host_memory import keep_host_memory
        from mmsr_jax.report.comparison import compare

        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
        keep_host_memory()
        enable_compilation_cache()
        clinical = lung_squares(_CLINICAL.value, CLINICAL_WINDOW_HU) if _CLINICAL.value else []
        print(
            compare(
                [Path(run) for run in _RUNS.value],
                Path(_OUTPUT.value),
                dataset=Path(_DATA.value) if _DATA.value else None,
                clinical=clinical,
            )
        )


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
