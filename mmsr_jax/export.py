"""Command line: a trained run as one file, for machines without the code that trained it.

    python -m mmsr_jax.export --run=runs/cyclegan --output=cyclegan.mmsr

The file holds the parameters, the normalisation and where they come from. It runs on CPUs, NVIDIA
GPUs and TPUs; `mmsr_jax.inference.exported.load_exported` reads it.
"""

import signal
import sys
from pathlib import Path

from absl import app, flags, logging

from data_pipelines.command_line import parse_flags
from data_pipelines.errors import UserError, reported_in_one_line

_RUN = flags.DEFINE_string("run", None, "Run directory of training.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File to write, such as model.mmsr.", required=True)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")


def main(argv: list[str]) -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a partial output goes
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; see --help")
        for flag in (_RUN, _OUTPUT):
            if not flag.value:
                raise UserError(f"--{flag.name} is missing; --help lists all flags")
        # Training's libraries take seconds to import; --help and typing errors need none of them.
        from mmsr_jax.inference.exported import check_output, save_exported
        from mmsr_jax.inference.trained import load_model

        output = Path(_OUTPUT.value)
        check_output(output, _OVERWRITE.value)
        model = load_model(_RUN.value, _CHECKPOINT.value)
        save_exported(model, output, overwrite=_OVERWRITE.value)
        size_mb = output.stat().st_size / 1e6
        print(f"{output}: {size_mb:.3g} MB, step {model.step} of {_RUN.value}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
