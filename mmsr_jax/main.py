"""Command line: train, then evaluate and show what was trained.

python -m mmsr_jax.main --config=configs/cyclegan.py[:PRESET] [--workdir=DIR] [--profile]
[--config.FIELD=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from absl import app, flags, logging
from ml_collections import config_flags

from data_pipelines.command_line import parse_flags, with_underscores
from data_pipelines.errors import UserError, reported_in_one_line

# JAX is imported in the functions: not before the cheap checks, and not in the processes that make
# phantoms, which import this module anew.
if TYPE_CHECKING:
    from mmsr_jax.config import Config

config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())  # a choice is a string
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/, with a preset after a colon.",
    lock_config=False,
    sys_argv=[with_underscores(argument) for argument in sys.argv],
)
_PROFILE = flags.DEFINE_boolean(
    "profile", False, "Trace a few steps into WORKDIR/profile, for TensorBoard or Perfetto."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; runs/NAME if not given.")


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        config = _config(argv)
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


def _config(argv: list[str]) -> Config:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; overrides look like --config.steps=100")
    from mmsr_jax.config import Config

    if not isinstance(_CONFIG.value, Config):
        problem = "--config is missing"
        if flags.FLAGS["config"].present:
            file = config_flags.get_config_filename(flags.FLAGS["config"])
            problem = f"--config={file} cannot be read"
        raise UserError(f"{problem}; try --config=configs/cyclegan.py")
    return _CONFIG.value


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse absl flags; an unknown configuration field is one line that lists the fields."""
    with reported_in_one_line():
        try:
            return parse_flags(argv)
        except (KeyError, AttributeError) as error:
            from mmsr_jax.config import field_names

            raise UserError(
                f"{error.args[0]!s}; the fields are {', '.join(field_names())}"
            ) from error


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
