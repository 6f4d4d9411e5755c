import dataclasses
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import tfrecord

from data_pipelines import dataset_card
from data_pipelines.dataset_card import CaseCard, DomainCard
from data_pipelines.errors import UserError
from data_pipelines.records import check_lengths, read_records

CASE = CaseCard(
    name="case",
    shape_px=(1, 9, 9),
    spacing_mm=(1.0, 1.0, 1.0),
    split="train",
    validation_from_slice=None,
    air=0.0,
    tissue=1.0,
    tissue_level=1.0,
    anchor_method="given",
    stored_offset=0.0,
    stored_step=1.0,
    patches={},
    valid_positions=1,
    rejected={},
)
PATCH_PX = 3
CASES = 3


def write_shards(folder: Path, sizes: list[int]) -> DomainCard:
    """Shards by TensorFlow's own writer, of records that are all different."""
    rng = np.random.default_rng(0)
    names = [f"p-train.tfrecord-{i:05d}-of-{len(sizes):05d}" for i in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for _ in range(size):
                patch = rng.integers(-32768, 32768, (PATCH_PX, PATCH_PX)).astype("<i2")
                feature = {
                    "patch": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[patch.tobytes()])
                    ),
                    "case": int64_feature(int(rng.integers(CASES))),
                    "row": int64_feature(-1),
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
    case = dataclasses.replace(CASE, patches={"train": sum(sizes)})
    empty = dataclasses.replace(CASE, patches={"train": 0})
    shards = {name: (folder / name).stat().st_size for name in reversed(names)}
    return DomainCard(PATCH_PX, "int16", (case, *([empty] * (CASES - 1))), shards)


def int64_feature(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def read_by_tensorflow(
    folder: Path, domain: DomainCard, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Every record, eight shards in turn."""
    paths = [str(folder / name) for name in sorted(domain.shards) if f"-{split}." in name]
    records = tf.data.Dataset.from_tensor_slices(paths).interleave(
        tf.data.TFRecordDataset,
        cycle_length=min(8, len(paths)),
        num_parallel_calls=min(2, len(paths)),
        deterministic=True,
    )
    features = {
        "patch": tf.io.FixedLenFeature((), tf.string),
        "case": tf.io.FixedLenFeature((), tf.int64),
    }
    parsed = [tf.io.parse_single_example(record, features) for record in records]
    patches = [tf.io.decode_raw(one["patch"], domain.dtype).numpy() for one in parsed]
    shape = (-1, domain.patch_px, domain.patch_px, 1)
    return np.reshape(patches, shape), np.array([int(one["case"]) for one in parsed])


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DomainCard, bytes]]:
    """A folder with one shard of three records, its card, and the shard's content."""
    folder = tmp_path_factory.mktemp("shard")
    domain = write_shards(folder, [3])
    (name,) = domain.shards
    return folder / name, domain, (folder / name).read_bytes()


@pytest.mark.parametrize("split", dataset_card.SPLITS)
@pytest.mark.parametrize("name", dataset_card.DOMAINS)
def test_a_dataset_is_what_tensorflow_reads(dataset: Path, name: str, split: str) -> None:
    domain = dataset_card.load(dataset).domain(name)
    patches, case = read_records(dataset, domain, name, split)
    expected_patches, expected_case = read_by_tensorflow(dataset, domain, split)
    assert patches.dtype == domain.dtype
    assert len(patches) == domain.patches(split)
    assert len(set(case)) > 1 or split == "validation"
    np.testing.assert_array_equal(patches, expected_patches)
    np.testing.assert_array_equal(case, expected_case)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=14).filter(any), share=st.floats(0, 1)
)
def test_shards_are_read_in_tensorflows_turn(sizes: list[int], share: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        domain = write_shards(folder, sizes)
        count = round(share * sum(sizes))
        found = read_records(folder, domain, "micro", "train", count)
        expected = read_by_tensorflow(folder, domain, "train")
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other[:count])


@given(data=st.data())
def test_every_flipped_bit_is_found(
    shard: tuple[Path, DomainCard, bytes], data: st.DataObject
) -> None:
    path, domain, content = shard
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"has a damaged micro record \(p-train.* at byte \d+: "):
        read_records(path.parent, domain, "micro", "train")


@given(data=st.data())
def test_every_truncation_is_found(
    shard: tuple[Path, DomainCard, bytes], data: st.DataObject
) -> None:
    path, domain, content = shard
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match=r"damaged micro record \(.*\); prepare the dataset again"):
        read_records(path.parent, domain, "micro", "train")


def test_records_that_are_missing(shard: tuple[Path, DomainCard, bytes]) -> None:
    path, domain, content = shard
    path.write_bytes(content[: 2 * len(content) // 3])
    with pytest.raises(UserError, match=r"damaged micro record \(1 of 3 are missing\)"):
        read_records(path.parent, domain, "micro", "train")


@pytest.mark.parametrize("change", [{"patch_px": 4}, {"dtype": "float64"}])
def test_records_of_another_kind(
    shard: tuple[Path, DomainCard, bytes], change: dict[str, object]
) -> None:
    path, domain, content = shard
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged micro record"):
        read_records(path.parent, dataclasses.replace(domain, **change), "micro", "train")


def test_a_damaged_dataset_is_named(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    domain = dataset_card.load(copy).clinical
    for name in domain.shards:
        (copy / name).write_bytes(b"?" * domain.shards[name])
    with pytest.raises(UserError) as caught:
        read_records(copy, domain, "clinical", "validation", 1)
    message = str(caught.value)
    assert message.startswith(f"{copy} has a damaged clinical record (")
    assert message.endswith("at byte 0: wrong checksum); prepare the dataset again")


@pytest.mark.parametrize("size", [1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_record_that_claims_to_be_longer_than_its_file(
    shard: tuple[Path, DomainCard, bytes], size: int
) -> None:
    path, domain, content = shard
    length = tfrecord(struct.pack("<Q", size))[12:]  # and its checksum
    path.write_bytes(length + content)
    if size > 1:
        with pytest.raises(ValueError, match="at byte 0: longer than the file"):
            check_lengths(path)
    with pytest.raises(UserError, match=r"damaged micro record \(.* at byte (0|12)"):
        read_records(path.parent, domain, "micro", "train")


def test_whole_shards_have_right_lengths(dataset: Path) -> None:
    for name in dataset_card.load(dataset).micro.shards:
        check_lengths(dataset / name)


def test_records_of_a_case_that_the_card_lacks(shard: tuple[Path, DomainCard, bytes]) -> None:
    path, domain, content = shard
    path.write_bytes(content)
    fewer = dataclasses.replace(domain, cases=domain.cases[:1])
    found, _ = read_records(path.parent, domain, "micro", "train")
    record = tf.train.Example(
        features=tf.train.Features(
            feature={
                "patch": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[found[0].tobytes()])
                ),
                "case": int64_feature(-1),
            }
        )
    )
    path.write_bytes(3 * tfrecord(record.SerializeToString()))
    with pytest.raises(UserError, match=r"damaged micro record \(case -1, of 1\)"):
        read_records(path.parent, fewer, "micro", "train")
