"""Buckets as places of checkpoints: opened the one way that is tried, or refused in one line."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from etils import epath

from data_pipelines.errors import UserError

# Google's client beside gcsfs, since Orbax deletes old checkpoints with it.
_PACKAGES = ("gcsfs", "google.cloud.storage")


def place_of_checkpoints(directory: epath.PathLike) -> epath.Path:
    """An absolute path of this machine, or gs://BUCKET/NAME, ready to be used.

    Raises:
      UserError: a bucket of another kind, or packages are missing.
    """
    scheme, separator, _ = str(directory).partition("://")
    if not separator:
        return epath.Path(os.path.abspath(directory))
    if scheme != "gs":
        raise UserError(
            f"{directory}: checkpoints go to a directory or to gs://BUCKET/NAME, since Orbax "
            f"writes no arrays to {scheme}://; mount that bucket and give the directory"
        )
    if not all(_is_there(package) for package in _PACKAGES):
        raise UserError(
            f"{directory}: the packages for buckets are missing; pip install -e .[buckets] "
            "-c constraints.txt"
        )
    # Else etils takes TensorFlow's file system, where there is TensorFlow: its errors are no
    # OSErrors, and it knows no other server than Google's.
    os.environ.setdefault("EPATH_USE_TF", "false")
    return epath.Path(directory)


@contextlib.contextmanager
def usable_bucket(directory: epath.Path) -> Iterator[None]:
    """Say in one line that a bucket cannot be opened; other places speak for themselves.

    Raises:
      UserError: the bucket's service does not answer, or refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of gcsfs, aiohttp or Google's client
        if "://" not in str(directory):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{directory} cannot be opened ({reason}); check the bucket's name, the network and "
            "the credentials (gcloud auth application-default login)"
        ) from error


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # not even the package around it, or it is blocked
        return False
