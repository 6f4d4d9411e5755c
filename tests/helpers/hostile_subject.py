"""What is fed with mutants of real files: readers of images, and of what the project writes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

from mutants import mutant


@dataclasses.dataclass(frozen=True)
class Subject:
    """A reader.

    Attributes:
      make: writes files into a folder.
      read: reads what they are, or raises a `UserError`.
      name: what `read` gets of the folder; the folder itself if empty.
      victims: pattern of the files to change.
      mutant: changed bytes of one of them.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    name: str = ""
    victims: str = "*"
    mutant: Callable[[bytes, Random], bytes] = mutant

    def path(self, folder: Path) -> Path:
        """What is read in a folder."""
        return folder / self.name


def subject_of(kind: str) -> Subject:
    """The subject of that name; what readers of images do not need is not imported for them."""
    from hostile_images import IMAGE_SUBJECTS

    if kind in IMAGE_SUBJECTS:
        return IMAGE_SUBJECTS[kind]
    from hostile_records import RECORD_SUBJECTS

    return RECORD_SUBJECTS[kind]
