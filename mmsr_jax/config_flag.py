"""The flag --config of the commands that train: a file of configs/, every field overridable."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from absl import flags
from ml_collections import config_flags

from data_pipelines import command_line
from data_pipelines.errors import UserError, reported_in_one_line

# JAX is imported in the functions: not before the cheap checks, and not in the processes that make
# phantoms, which import the commands anew.
if TYPE_CHECKING:
    from mmsr_jax.config import Config


def define_config() -> flags.FlagHolder:
    """Define --config; overrides look like --config.steps=100."""
    config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())  # strings
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/, with a preset after a colon.",
        lock_config=False,
        sys_argv=[command_line.with_underscores(argument) for argument in sys.argv],
    )


def chosen_config(flag: flags.FlagHolder, argv: list[str]) -> Config:
    """The configuration that was asked for.

    Args:
      flag: what `define_config` returned.
      argv: what is no flag, after the command.

    Raises:
      UserError: there is none, or an argument that is no flag.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; overrides look like --config.steps=100")
    from mmsr_jax.config import Config

    if not isinstance(flag.value, Config):
        problem = "--config is missing"
        if flags.FLAGS["config"].present:
            file = config_flags.get_config_filename(flags.FLAGS["config"])
            problem = f"--config={file} cannot be read"
        raise UserError(f"{problem}; try --config=configs/cyclegan.py")
    return flag.value


def parse_flags(argv: list[str]) -> list[str]:
    """Parse absl flags; an unknown configuration field is one line that lists the fields."""
    with reported_in_one_line():
        try:
            return command_line.parse_flags(argv)
        except (KeyError, AttributeError) as error:
            from mmsr_jax.config import field_names

            raise UserError(
                f"{error.args[0]!s}; the fields are {', '.join(field_names())}"
            ) from error
