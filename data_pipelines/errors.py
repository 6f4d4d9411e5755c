"""The one kind of error that a user can cause, and how a command line reports it."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """What a user can cause and mend: one line with the thing, its value and the remedy.

    It quotes names and headers of files, so that line breaks and commands of a terminal in it
    become question marks.
    """

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


def printable(text: str) -> str:
    """The text with `?` for what does not show as a character of a line."""
    return "".join(c if c.isprintable() else "?" for c in text)


@contextlib.contextmanager
def reported_in_one_line() -> Iterator[None]:
    """Print a `UserError` as one line on standard error and exit with status 1.

    So is what the system says of a file: that it is locked, or that the disk is full.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        remedy = "check the path, its permissions and its disk"
        sys.exit(printable(f"error: {error.filename}: {error.strerror}; {remedy}"))
