"""Flags of the command lines: an error in one of them is one line, as any other bad input."""

from absl import flags

from data_pipelines.errors import UserError, reported_in_one_line


def parse_flags(argv: list[str]) -> list[str]:
    """Parse absl flags, for `app.run(main, flags_parser=parse_flags)`; returns what is no flag."""
    with reported_in_one_line():
        try:
            return flags.FLAGS([argv[0], *map(with_underscores, argv[1:])])
        except (flags.Error, ValueError, TypeError, OSError) as error:
            raise UserError(" ".join(str(error).split())) from error


def with_underscores(argument: str) -> str:
    """--clinical-patch=32 as --clinical_patch=32, which absl asks for."""
    name, equals, value = argument.partition("=")
    return (name.replace("-", "_").replace("__", "--", 1) if name[:2] == "--" else name) + (
        equals + value
    )
