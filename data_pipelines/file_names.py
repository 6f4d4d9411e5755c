"""What the name of a file says: its format, and its place in a folder."""

import re
from pathlib import Path, PurePath

VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
IMAGES = (".tif", ".tiff", ".png")  # files that carry no spacing in millimetres


def extension(path: Path, known: tuple[str, ...]) -> str:
    """The extension in `known` that the name ends in, or an empty string."""
    return next((ext for ext in known if path.name.lower().endswith(ext)), "")


def lies_inside(name: str) -> bool:
    """Whether a relative path, by its spelling, names something in the folder that it is in."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts and path != PurePath()


def files_in(folder: Path) -> list[Path]:
    """Visible files of a folder in natural order.

    Raises:
      OSError: the folder is locked.
    """
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return sorted(files, key=natural_order)


def natural_order(path: Path) -> list[int | str]:
    """Key that sorts 2 before 10."""
    return [int(t) if t.isdecimal() else t.lower() for t in re.split(r"(\d+)", str(path))]
