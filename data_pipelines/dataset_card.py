"""The dataset card: what a prepared dataset holds, as typed JSON beside its records."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.file_names import lies_inside
from data_pipelines.typed_json import from_json, typed

CARD_NAME = "dataset_card.json"
FORMAT_VERSION = 1
DOMAINS = ("clinical", "micro")
SPLITS = ("train", "validation")
_PACKAGES = ("mmsr-jax", "numpy", "SimpleITK", "tensorflow-datasets")

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1)]
Step = Annotated[float, msgspec.Meta(gt=0)]


@dataclasses.dataclass(frozen=True)
class CaseCard:
    """One volume of one domain; a record's `case` is its index in `DomainCard.cases`.

    Attributes:
        name: last component of the path it was read from.
        shape_px: (z, y, x), after resampling if there was any.
        spacing_mm: (x, y, z), after resampling.
        split: "train", "validation", or "both" for a single case divided by slices.
        validation_from_slice: first axial slice of validation, for "both" only.
        air: value of air in the volume's own units; becomes -1.
        tissue: value of soft tissue in the volume's own units; becomes `tissue_level`.
        tissue_level: normalised value of soft tissue.
        anchor_method: how the two anchors were found.
        stored_offset: value = stored * stored_step + stored_offset.
        stored_step: see `stored_offset`; 1 unless floats had to be quantised.
        patches: number of patches a split.
        valid_positions: number of places where a patch lies in the mask.
        rejected: reason -> number of positions.
    """

    name: str
    shape_px: tuple[Size, Size, Size]
    spacing_mm: tuple[Step, Step, Step]
    split: Annotated[str, msgspec.Meta(pattern="^(train|validation|both)$")]
    validation_from_slice: Count | None
    air: float
    tissue: float
    tissue_level: float
    anchor_method: str
    stored_offset: float
    stored_step: float
    patches: dict[str, Count]
    valid_positions: Count
    rejected: dict[str, Count]

    def normalisation(self) -> tuple[float, float]:
        """(gain, bias) with normalised = clip(gain * stored + bias, -1, 1)."""
        gain = (self.tissue_level + 1.0) / (self.tissue - self.air)
        return gain * self.stored_step, gain * (self.stored_offset - self.air) - 1.0


@dataclasses.dataclass(frozen=True)
class DomainCard:
    """One modality.

    Attributes:
        patch_px: height and width of a patch.
        dtype: of the stored values, "int16" or "uint16".
        cases: in the order of the records' `case` index.
        shards: record file, relative to the dataset -> size in bytes.
    """

    patch_px: Size
    dtype: Annotated[str, msgspec.Meta(pattern="^u?int16$")]
    cases: Annotated[tuple[CaseCard, ...], msgspec.Meta(min_length=1)]
    shards: dict[str, Count]

    def patches(self, split: str) -> int:
        """Number of patches of "train" or "validation"."""
        return sum(case.patches[split] for case in self.cases)

    def patch_bytes(self) -> int:
        """Of one patch as stored."""
        return self.patch_px**2 * np.dtype(self.dtype).itemsize

    def shards_of(self, split: str) -> list[str]:
        """Record files of "train" or "validation", relative to the dataset, in order."""
        return [name for name in sorted(self.shards) if f"-{split}." in Path(name).name]


@dataclasses.dataclass(frozen=True)
class HeldOutScan:
    """A scan with its ground truth, as paths relative to the dataset."""

    clinical: str
    micro: str


@dataclasses.dataclass(frozen=True)
class SkippedCase:
    """A volume that could not be prepared.

    Attributes:
        domain: "clinical" or "micro".
        name: last component of its path.
        reason: what is wrong with it.
    """

    domain: Annotated[str, msgspec.Meta(pattern="^(clinical|micro)$")]
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """Everything about a dataset that training, inference and a reader need to know.

    Attributes:
        scale: micro pixels a clinical pixel, along one axis.
        window_hu: clinical window, mapped to [-1, 1].
        seed: of split and sampling.
        clinical: the low-resolution domain.
        micro: the high-resolution domain.
        held_out: whole scans that are in neither split.
        skipped: cases that were left out because they are bad.
        software: package -> version that prepared the dataset.
        format_version: of this card and of the records.
    """

    scale: Size
    window_hu: tuple[float, float]
    seed: int
    clinical: DomainCard
    micro: DomainCard
    held_out: tuple[HeldOutScan, ...] = ()
    skipped: tuple[SkippedCase, ...] = ()
    software: dict[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def domain(self, name: str) -> DomainCard:
        """The card of "clinical" or "micro"."""
        return {"clinical": self.clinical, "micro": self.micro}[name]

    def save(self, directory: Path) -> None:
        """Write the card into a dataset's directory."""
        text = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)
        (directory / CARD_NAME).write_text(text + "\n")


def load(directory: str | Path) -> DatasetCard:
    """Read a dataset's card and check that its shards are all there, at full size.

    Raises:
        UserError: there is no readable card, or a shard is missing or has another size.
    """
    directory = Path(directory)
    path = directory / CARD_NAME
    if not path.is_file():
        raise UserError(
            f"{directory} is not a dataset: it has no {CARD_NAME}; "
            "make one with python -m data_pipelines.prepare"
        )
    try:
        card = _from_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from error
    for domain in (card.clinical, card.micro):
        for name, size in domain.shards.items():
            _check_shard(directory / name, size)
    return card


def _check_shard(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the dataset again")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path} has {found} bytes instead of {size}; prepare the dataset again")


def _from_json(text: bytes) -> DatasetCard:
    values = from_json(text)
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"format {version!r}, this program reads {FORMAT_VERSION}")
    card = typed(values, DatasetCard)
    low, high = card.window_hu
    if low >= high:
        raise ValueError(f"a window from {low} to {high} HU")
    paths = [path for scan in card.held_out for path in (scan.clinical, scan.micro)]
    for name in (*card.clinical.shards, *card.micro.shards, *paths):
        if not lies_inside(name):
            raise ValueError(f"{name!r} is no file of the dataset")
    for domain in (card.clinical, card.micro):
        _check_domain(domain)
    return card


def _check_domain(domain: DomainCard) -> None:
    """Check what is computed from the numbers of a domain."""
    for case in domain.cases:
        if set(case.patches) != set(SPLITS):
            raise ValueError(f"patches of {', '.join(case.patches) or 'no split'}")
        if case.air == case.tissue or not all(map(_is_float32, case.normalisation())):
            raise ValueError(f"anchors of {case.air} and {case.tissue}")
    for split in SPLITS:
        stored = sum(domain.shards[name] for name in domain.shards_of(split))
        if domain.patches(split) * domain.patch_bytes() > stored:
            raise ValueError(
                f"{domain.patches(split)} {split} patches of {domain.patch_px} px cannot be in "
                f"records of {stored} bytes"
            )


def _is_float32(value: float) -> bool:
    return abs(value) <= float(np.finfo(np.float32).max)  # not so of NaN


@functools.cache
def installed_software() -> dict[str, str]:
    """Package -> version, of those that decide what a dataset holds."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version()} | versions


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
