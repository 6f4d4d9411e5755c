"""TFDS builder of the patches: one config a domain, raw stored values, sharded TFRecords."""

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines.dataset_card import SPLITS
from data_pipelines.quiet_tensorflow import tf
from data_pipelines.stage_case import StagedPatches

POSITION_FIELDS = ("plane", "slice", "row", "column")
_SHARD_BYTES = 64 * 2**20
_LEAST_SHARDS = 4


@dataclasses.dataclass(eq=False, kw_only=True)
class CtPatchesConfig(tfds.core.BuilderConfig):
    """One domain.

    Attributes:
        patch_px: height and width of a patch.
        dtype: "int16" or "uint16", of every staged file.
        staged: what to write; empty when only reading.
    """

    patch_px: int
    dtype: str
    staged: tuple[StagedPatches, ...] = ()


class CtPatches(tfds.core.GeneratorBasedBuilder):
    """Square CT patches with the case and position that they were taken from."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config: CtPatchesConfig = self.builder_config
        scalar = tfds.features.Scalar(np.int32)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    # Without encoding="bytes" TFDS stores int16 as int64.
                    "patch": tfds.features.Tensor(
                        shape=(config.patch_px, config.patch_px),
                        dtype=np.dtype(config.dtype).type,
                        encoding="bytes",
                    ),
                    "case": scalar,
                }
                | dict.fromkeys(POSITION_FIELDS, scalar)
            )
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for staged in self.builder_config.staged:
            if staged.split != split:
                continue
            patches = np.load(staged.patches, mmap_mode="r")
            positions = np.load(staged.positions)
            for index, (patch, position) in enumerate(zip(patches, positions, strict=True)):
                example = dict(zip(POSITION_FIELDS, position, strict=True))
                yield f"{staged.case}/{index}", example | {"patch": patch, "case": staged.case}

    def _example_writer(self) -> Any:
        writer = super()._example_writer()
        write = writer.write
        # Protobuf orders the fields of an Example anew in each process, unless told to sort them.
        writer.write = lambda path, examples: write(
            path, ((key, _with_sorted_fields(example)) for key, example in examples)
        )
        return writer


def write_domain(
    directory: Path, domain: str, patch_px: int, dtype: str, staged: tuple[StagedPatches, ...]
) -> dict[str, int]:
    """Write one domain's records under a dataset's directory, shuffled by a hash.

    Returns:
        Record file, relative to `directory` -> size in bytes.
    """
    counts = dict.fromkeys(SPLITS, 0)
    for part in staged:
        counts[part.split] += np.load(part.patches, mmap_mode="r").shape[0]
    record_bytes = patch_px * patch_px * np.dtype(dtype).itemsize
    shards = max(_LEAST_SHARDS, 2 * counts["train"] * record_bytes // _SHARD_BYTES)
    config = CtPatchesConfig(name=domain, patch_px=patch_px, dtype=dtype, staged=staged)
    with _silent_tfds():
        builder = CtPatches(data_dir=directory, config=config)
        builder.download_and_prepare(
            download_dir=directory / "downloads",
            download_config=tfds.download.DownloadConfig(
                num_shards=_power_of_two(min(shards, *counts.values())), try_download_gcs=False
            ),
        )
    shutil.rmtree(directory / "downloads", ignore_errors=True)
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(Path(builder.data_dir).glob("*.tfrecord*"))
    }


def _power_of_two(count: int) -> int:
    """The largest up to `count`: what the rows of a batch, and so processes, can share equally."""
    return 1 << count.bit_length() - 1


def _with_sorted_fields(serialised: bytes) -> bytes:
    return tf.train.Example.FromString(serialised).SerializeToString(deterministic=True)


@contextlib.contextmanager
def _silent_tfds() -> Iterator[None]:
    """Keep TFDS's own progress bars, prints and notices away from the terminal."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
