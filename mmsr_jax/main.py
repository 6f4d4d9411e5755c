"""Command line: train, then evaluate and show what was trained.

python -m mmsr_jax.main --config=configs/cyclegan.py[:PRESET] [--workdir=DIR] [--profile]
[--config.FIELD=VALUE ...]
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from data_pipelines.errors import reported_in_one_line
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags

_CONFIG = define_config()
_PROFILE = flags.DEFINE_boolean(
    "profile", False, "Trace a few steps into WORKDIR/profile, for TensorBoard or Perfetto."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; runs/NAME if not given.")


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        config = chosen_config(_CONFIG, argv)
        # JAX is imported here: not before the cheap checks, and not in the processes that make
        # phantoms, which import this module anew.
        from mmsr_jax.compilation_cache import enable_compilation_cache
        from mmsr_jax.host_memory import keep_host_memory
        from mmsr_jax.train import Interrupted, train

        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
        keep_host_memory()
        enable_compilation_cache()
        workdir = Path(_WORKDIR.value or f"runs/{config.name}")
        try:
            dataset = train(config, workdir, profile=_PROFILE.value)
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(128 + interrupted.signal)
        print(f"checkpoints: {workdir / 'checkpoints'}")
        from mmsr_jax.inference.trained import load_model
        from mmsr_jax.report.run_report import report_run, super_resolve_held_out

        model = load_model(workdir)
        print(report_run(workdir, model, dataset=dataset, phantoms=config.evaluation_phantoms))
        if output := super_resolve_held_out(workdir, model, dataset):
            print(f"super-resolved volume: {output}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
