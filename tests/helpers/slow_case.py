"""A preparation whose cases never end, to be stopped by signals."""

import os
import time
from pathlib import Path

from data_pipelines import prepare as preparation


def never_ending_case(task):
    (task.directory / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def prepare_slowly(scans, output):
    preparation.stage_case = never_ending_case
    preparation.prepare(
        preparation.PrepareOptions(
            clinical=(f"{scans}/clinical",),
            micro=(f"{scans}/micro",),
            output=Path(output),
            workers=2,
        )
    )
