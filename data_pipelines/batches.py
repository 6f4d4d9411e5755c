"""The last room: records of a prepared dataset -> batches as global JAX arrays.

The position in the data is a function of the step number alone. A domain with N training
patches has N // B batches an epoch; step s reads batch s % (N // B) of epoch s // (N // B), and
each epoch has its own order, seeded by (seed, domain, epoch). A run that starts at step s
therefore sees exactly what a run that got there by itself sees, and no iterator state is saved.

The rows of a batch fall into groups, each of which reads shards of its own, dealt anew each epoch.
A process opens the shards of its rows alone, and what a row holds depends on the batch size and the
number of shards, not on how many processes share the work.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from data_pipelines import dataset_card
from data_pipelines.dataset_card import DOMAINS, DomainCard
from data_pipelines.errors import UserError
from data_pipelines.patches import check_batch_size, gain_and_bias, normalise, turn
from data_pipelines.quiet_tensorflow import tf
from data_pipelines.records import INTERLEAVED_SHARDS, check_cases, check_lengths

# The shuffle buffers of a domain together. The writer has hashed all records into random order.
_SHUFFLE_BYTES = 128 * 2**20
_LEAST_SHUFFLED = 64  # records, of a group
_READER_THREADS = 4


def train_batches(
    dataset_dir: str | Path,
    *,
    batch_size: int,
    start_step: int = 0,
    seed: int = 0,
    augment: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """Endless unpaired batches from `start_step` on; the two domains are shuffled independently.

    Args:
        dataset_dir: made by `data_pipelines.prepare`.
        batch_size: B, of the whole batch over all processes.
        start_step: number of the first batch.
        seed: of the order (and of the augmentation). Content depends on it and on the step
            alone, not on the number of devices or processes.
        augment: flip and rotate by multiples of 90 degrees, drawn anew each epoch.
        sharding: of the batch axis; every process reads its own rows. Default: one device.

    Returns:
        Iterator over {"clinical": (B, p, p, 1), "micro": (B, P, P, 1)}, float32 in [-1, 1].

    Raises:
        UserError: no valid dataset, B larger than a domain, B not divisible over the devices;
            while iterating, a damaged record.
    """
    directory = Path(dataset_dir)
    card = dataset_card.load(directory)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    check_batch_size(directory, card, batch_size, len(sharding.device_set))
    rows = _rows_of_this_process(sharding, batch_size)
    readers = {name: DomainReader(directory, card.domain(name), name, seed) for name in DOMAINS}
    return _global_batches(readers, batch_size, rows, start_step, augment, sharding)


def _global_batches(
    readers: dict[str, "DomainReader"],
    batch_size: int,
    rows: slice,
    start_step: int,
    augment: bool,
    sharding: jax.sharding.Sharding,
) -> Iterator[dict[str, jax.Array]]:
    def to_global(local: np.ndarray) -> jax.Array:
        whole = (batch_size, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, whole)

    local = {name: reader.batches(batch_size, rows, start_step) for name, reader in readers.items()}
    for step in itertools.count(start_step):
        batch = {}
        for name, reader in readers.items():
            stored, case = next(local[name])
            constants = gain_and_bias(reader.domain, case)
            batch[name] = normalise(*map(to_global, (stored, *constants)))
            if augment:
                turns = reader.turns(step, batch_size)[rows]
                batch[name] = turn(batch[name], to_global(turns))
        yield batch


def _rows_of_this_process(sharding: jax.sharding.Sharding, batch_size: int) -> slice:
    """Rows of the global batch that this process's devices hold; they are contiguous."""
    places = sharding.addressable_devices_indices_map((batch_size, 1, 1, 1))
    bounds = [index[0].indices(batch_size)[:2] for index in places.values() if index is not None]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


@dataclasses.dataclass(frozen=True)
class DomainReader:
    """Reads one domain's training records.

    Attributes:
        directory: of the dataset.
        domain: its card.
        name: "clinical" or "micro".
        seed: of the order of the records and of the augmentation.
    """

    directory: Path
    domain: DomainCard
    name: str
    seed: int = 0

    def batches(
        self, batch_size: int, rows: slice, start_step: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Endless `rows` of the training batches: stored (n, p, p, 1) and case index (n,)."""
        epoch, offset = divmod(start_step, self._batches_an_epoch(batch_size))
        while True:
            missing = self._batches_an_epoch(batch_size) - offset
            for batch in self._as_numpy(self._epoch(epoch, offset, batch_size, rows)):
                missing -= 1
                yield batch
            if missing:
                raise self._damaged(f"those of {missing} batches are missing")
            epoch, offset = epoch + 1, 0

    def turns(self, step: int, batch_size: int) -> np.ndarray:
        """(B, 1, 1, 1) uint8 in [0, 8) for `turn`, drawn by (seed, domain, step)."""
        words = [self.seed, DOMAINS.index(self.name), step, 1]
        turns = np.random.default_rng(words).integers(0, 8, batch_size, np.uint8)
        return turns.reshape(-1, 1, 1, 1)

    def _paths(self) -> list[str]:
        return [str(self.directory / name) for name in self.domain.shards_of("train")]

    def _groups(self, batch_size: int) -> int:
        """Number of equal groups of rows that read equally many shards."""
        groups = math.gcd(batch_size, len(self._paths()))
        return groups if self._in_equal_shards() >= batch_size else 1

    def _in_equal_shards(self) -> int:
        """Records that count when shards, which may differ by one, count as equal."""
        count = self.domain.patches("train")
        return count - count % len(self._paths())

    def _batches_an_epoch(self, batch_size: int) -> int:
        """What every group has records for."""
        if self._groups(batch_size) > 1:
            return self._in_equal_shards() // batch_size
        return self.domain.patches("train") // batch_size

    def _epoch(self, epoch: int, offset: int, batch_size: int, rows: slice) -> tf.data.Dataset:
        """This process's rows of one epoch's batches, from batch number `offset` on."""
        groups = self._groups(batch_size)
        rows_each = batch_size // groups
        first, end = rows.start // rows_each, -(-rows.stop // rows_each)
        words = np.random.SeedSequence([self.seed, DOMAINS.index(self.name), epoch])
        shard_order, *shuffle_seeds = words.generate_state(1 + groups)
        paths = np.random.default_rng(shard_order).permutation(self._paths())
        # Skipped batches and other processes' rows stay serialised: only what is used is parsed.
        read = tuple(
            self._shuffled(paths[group::groups], int(shuffle_seeds[group]), groups)
            .batch(rows_each, drop_remainder=True)
            .skip(offset)
            for group in range(first, end)
        )
        mine = slice(rows.start - first * rows_each, rows.stop - first * rows_each)
        parsed = tf.data.Dataset.zip(read).map(
            lambda *serialised: self._parse(tf.concat(serialised, 0)[mine]),
            num_parallel_calls=_READER_THREADS,
            deterministic=True,
        )
        return parsed.take(self._batches_an_epoch(batch_size) - offset).prefetch(4)

    def _shuffled(self, paths: np.ndarray, seed: int, groups: int) -> tf.data.Dataset:
        """Serialised records of some shards, several read in turn."""
        _hide_accelerators()
        opened = min(INTERLEAVED_SHARDS, len(paths))
        records = tf.data.Dataset.from_tensor_slices(paths).interleave(
            lambda path: tf.data.TFRecordDataset(tf.numpy_function(_openable, [path], tf.string)),
            cycle_length=opened,
            num_parallel_calls=min(2, opened),
            deterministic=True,
        )
        buffer = max(_LEAST_SHUFFLED, _SHUFFLE_BYTES // groups // self.domain.patch_bytes())
        records = records.shuffle(
            min(self.domain.patches("train"), buffer), seed=seed, reshuffle_each_iteration=False
        )
        options = tf.data.Options()
        options.threading.private_threadpool_size = _READER_THREADS
        options.threading.max_intra_op_parallelism = 1
        # Nothing here is tuned; the tuner is suspected of stalls of 40 s at the end of an epoch.
        options.autotune.enabled = False
        return records.with_options(options)

    def _parse(self, serialised: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        fields = {
            "patch": tf.io.FixedLenFeature((), tf.string),
            "case": tf.io.FixedLenFeature((), tf.int64),
        }
        record = tf.io.parse_example(serialised, fields)
        patch = tf.io.decode_raw(record["patch"], tf.as_dtype(self.domain.dtype))
        size = self.domain.patch_px
        return tf.reshape(patch, (-1, size, size, 1)), record["case"]

    def _as_numpy(self, dataset: tf.data.Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        iterator = dataset.as_numpy_iterator()
        while True:
            try:
                batch = next(iterator)
                check_cases(self.domain, batch[1])
            except StopIteration:
                return
            except tf.errors.OpError as error:
                reason = error.message.splitlines()[0].rpartition("}} ")[2]
                raise self._damaged(self._too_long() or reason) from error
            except ValueError as error:
                raise self._damaged(str(error)) from error
            yield batch

    def _too_long(self) -> str:
        """Which record is longer than its file, if any."""
        try:
            for path in self._paths():
                check_lengths(Path(path))
        except ValueError as error:
            return str(error)
        return ""

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self.directory} has a damaged {self.name} record ({reason}); "
            "prepare the dataset again"
        )


def _openable(path: bytes) -> bytes:
    """The path, or none where records are longer than the file, of which TensorFlow would die."""
    try:
        check_lengths(Path(os.fsdecode(path)))
    except ValueError:
        return b""  # it prints what is raised here
    return path


@functools.cache
def _hide_accelerators() -> None:
    """TensorFlow only reads records here; the accelerators' memory belongs to JAX."""
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
