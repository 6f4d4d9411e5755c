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
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_pipelines.ct_patches.shards import Shard, features, save_order, write_shard
from data_pipelines.dataset_card import SPLITS
from data_pipelines.stage_case import StagedPatches
from data_pipelines.staging import Run

_SHARD_BYTES = 64 * 2**20
_LEAST_SHARDS = 4
_RECORD_OVERHEAD = 16  # bytes of TFRecord, which TFDS does not count


@dataclasses.dataclass(eq=False, kw_only=True)
class CtPatchesConfig(tfds.core.BuilderConfig):
    """One domain.

    Attributes:
        patch_px: height and width of a patch.
        dtype: "int16" or "uint16".
        staged: what to write; this and the rest are unused when only reading.
        shards: record files a split.
        scratch: a folder for the order of the records.
        run: where the record files are written.
    """

    patch_px: int
    dtype: str
    staged: tuple[StagedPatches, ...] = ()
    shards: int = 1
    scratch: Path = Path()
    run: Run | None = None


class CtPatches(FileReaderBuilder):
    """Square CT patches with the case and position that they were taken from."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config: CtPatchesConfig = self.builder_config
        return self.dataset_info_from_configs(features=features(config.patch_px, config.dtype))

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # TFDS's own writers for Beam make shards of unequal lengths (`BeamWriter`), or a graph that
        # grows by 10 kB a shard (`ShardBasedBuilder`).
        shards = {split: self._shards_of(split) for split in SPLITS}
        self.builder_config.run(
            write_shard, [shard for split in SPLITS for shard in shards[split]], "writing records"
        )
        self.info.set_splits(
            tfds.core.SplitDict([self._split_info(split, shards[split]) for split in SPLITS])
        )

    def _shards_of(self, split: str) -> list[Shard]:
        config: CtPatchesConfig = self.builder_config
        parts = [part for part in config.staged if part.split == split]
        order = config.scratch / f"{config.name}_{split}.npz"
        count = save_order(order, split, parts)
        bounds = [round(count * index / config.shards) for index in range(config.shards + 1)]
        template = self._get_filename_template(split)
        paths = [
            Path(template.sharded_filepath(shard_index=index, num_shards=config.shards))
            for index in range(config.shards)
        ]
        return [
            Shard(path, order, first, last, config.patch_px, config.dtype)
            for path, first, last in zip(paths, bounds[:-1], bounds[1:], strict=True)
        ]

    def _split_info(self, split: str, shards: list[Shard]) -> tfds.core.SplitInfo:
        lengths = [shard.last - shard.first for shard in shards]
        stored = sum(shard.path.stat().st_size for shard in shards)
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=stored - _RECORD_OVERHEAD * sum(lengths),
            filename_template=self._get_filename_template(split),
        )


def write_domain(
    directory: Path,
    domain: str,
    patch_px: int,
    dtype: str,
    staged: tuple[StagedPatches, ...],
    scratch: Path,
    run: Run,
) -> dict[str, int]:
    """Write one domain's records under a dataset's directory, shuffled by a hash.

    Args:
        directory: of the dataset.
        domain: "clinical" or "micro".
        patch_px: height and width of a patch.
        dtype: "int16" or "uint16".
        staged: the patches; int16 ones of a uint16 domain are shifted by 32768.
        scratch: a folder that the workers of `run` see.
        run: where the record files are written, each by one call.

    Returns:
        Record file, relative to `directory` -> size in bytes.
    """
    counts = dict.fromkeys(SPLITS, 0)
    for part in staged:
        counts[part.split] += np.load(part.patches, mmap_mode="r").shape[0]
    record_bytes = patch_px * patch_px * np.dtype(dtype).itemsize
    shards = max(_LEAST_SHARDS, 2 * counts["train"] * record_bytes // _SHARD_BYTES)
    config = CtPatchesConfig(
        name=domain,
        patch_px=patch_px,
        dtype=dtype,
        staged=staged,
        shards=_power_of_two(min(shards, *counts.values())),
        scratch=scratch,
        run=run,
    )
    with _silent_tfds():
        builder = CtPatches(data_dir=directory, config=config)
        builder.download_and_prepare(
            download_dir=directory / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    shutil.rmtree(directory / "downloads", ignore_errors=True)
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(Path(builder.data_dir).glob("*.tfrecord*"))
    }


def _power_of_two(count: int) -> int:
    """The largest up to `count`: what the rows of a batch, and so processes, can share equally."""
    return 1 << count.bit_length() - 1


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
