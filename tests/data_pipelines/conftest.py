from pathlib import Path

import pytest
from small_volumes import MICRO_ANCHORS, write_clinical, write_micro

from data_pipelines.prepare import PrepareOptions, prepare


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 clinical cases (22 training patches), 4 micro cases (33). Not to be changed."""
    folder = tmp_path_factory.mktemp("batches")
    for number in range(3):
        write_clinical(folder / "clinical" / f"c{number}.nii.gz", number)
    for number in range(4):
        write_micro(folder / "micro" / f"m{number}.mha", number, shape=(5, 40, 40))
    prepare(
        PrepareOptions(
            clinical=(str(folder / "clinical"),),
            micro=(str(folder / "micro"),),
            output=folder / "dataset",
            scale=4,
            clinical_patch=6,
            patches_per_volume=11,
            clinical_mask="none",
            micro_mask="none",
            micro_air=MICRO_ANCHORS[0],
            micro_tissue=MICRO_ANCHORS[1],
            workers=1,
        )
    )
    return folder / "dataset"
