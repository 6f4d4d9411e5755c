"""The command that a launcher runs: what stands behind -- on its own command line."""

from data_pipelines import command_line
from data_pipelines.errors import UserError, reported_in_one_line


def parse_flags_and_command(argv: list[str]) -> list[str]:
    """Parse absl flags up to --, for `app.run`; returns the program and the command as it is."""
    end = argv.index("--") if "--" in argv else len(argv)
    unparsed, command = command_line.parse_flags(argv[:end]), argv[end + 1 :]
    with reported_in_one_line():
        if len(unparsed) > 1 or not command:
            raise UserError("no command; write it after --, as in -- python -m mmsr_jax.main ...")
    return [argv[0], *command]
