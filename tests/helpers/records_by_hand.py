"""Records of the small dataset as TFDS reads them, normalised by NumPy from the anchors alone."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from small_volumes import MICRO_ANCHORS

from data_pipelines import dataset_card


def normalised_by_hand(dataset: Path, split: str, name: str) -> np.ndarray:
    """All patches (n, p, p, 1) of a domain's split, in float64."""
    builder = tfds.builder_from_directory(dataset / "ct_patches" / name / "1.0.0")
    patches = {}
    for record in builder.as_dataset(split=split).as_numpy_iterator():
        values = record["patch"].astype(np.float64)
        if name == "clinical":
            expected = 2 * (values + 1000) / 1400 - 1
        else:
            air, tissue = MICRO_ANCHORS
            expected = (values - air) / (tissue - air) * (2 * 1040 / 1400) - 1
        where = tuple(int(record[k]) for k in ("case", "slice", "row", "column"))
        patches[where] = np.clip(expected, -1, 1)[..., None]
    assert len(patches) == dataset_card.load(dataset).domain(name).patches(split)
    return np.array(list(patches.values()))
