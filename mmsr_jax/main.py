"""Command line: train, then evaluate and show what was trained.

python -m mmsr_jax.main --config=configs/cyclegan.py[:PRESET] [--workdir=DIR] [--profile]
[--checkpoints=PLACE] [--config.FIELD=VALUE ...]

On a pod or cluster every process runs this command; they train together, and only the first one
writes the run directory. See launch/README.md.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging

from data_pipelines.errors import reported_in_one_line
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags

_CONFIG = define_config()
_CHECKPOINTS = flags.DEFINE_string(
    "checkpoints",
    None,
    "Place of the checkpoints, as gs://BUCKET/NAME; WORKDIR/checkpoints if not given.",
)
_PROFILE = flags.DEFINE_boolean(
    "profile", False, "Trace a few steps into WORKDIR/profile, for TensorBoard or Perfetto."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; runs/NAME if not given.")


def main(argv: list[str]) -> None:
    """Run the command line."""
    with _without_waiting_for_failed_saves(), reported_in_one_line():
        config = chosen_config(_CONFIG, argv)
        # JAX is imported here: not before the cheap checks, and not in the processes that make
        # phantoms, which import this module anew.
        from mmsr_jax.checkpoints import directory_of
        from mmsr_jax.compilation_cache import enable_compilation_cache
        from mmsr_jax.host_memory import keep_host_memory
        from mmsr_jax.processes import is_first, join_processes
        from mmsr_jax.train import Interrupted, train

        logging.set_verbosity(logging.FATAL)  # Orbax warns of what is meant, and logs what we raise
        several = join_processes()
        keep_host_memory()
        enable_compilation_cache()
        workdir = Path(_WORKDIR.value or f"runs/{config.name}")
        try:
            dataset = train(
                config, workdir, checkpoints_in=_CHECKPOINTS.value, profile=_PROFILE.value
            )
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(128 + interrupted.signal)
        if is_first():
            print(f"checkpoints: {directory_of(workdir)}")
        if several:  # the others do not wait for an evaluation
            return
        from mmsr_jax.inference.trained import load_model
        from mmsr_jax.report.run_report import report_run, super_resolve_held_out

        model = load_model(workdir)
        print(report_run(workdir, model, dataset=dataset, phantoms=config.evaluation_phantoms))
        if output := super_resolve_held_out(workdir, model, dataset):
            print(f"super-resolved volume: {output}")


@contextlib.contextmanager
def _without_waiting_for_failed_saves() -> Iterator[None]:
    """End at once: threads of a save that failed wait minutes for one another, and Python for them.

    Orbax 0.12 leaves them; all that could be saved has been saved.
    """
    status: str | int | None = 0
    try:
        yield
    except SystemExit as leaving:
        status = leaving.code
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        sys.exit(status)
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(status, str) else status or 0)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
