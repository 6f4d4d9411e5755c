"""The one kind of error that a user can cause, and how a command line reports it."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """What a user can cause and mend: one line with the thing, its value and the remedy."""


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
        sys.exit(f"error: {error.filename}: {error.strerror}; {remedy}")
