"""The dataset card: what a prepared dataset holds, as typed JSON beside its records."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError

CARD_NAME = "dataset_card.json"
FORMAT_VERSION = 1
DOMAINS = ("clinical", "micro")
SPLITS = ("train", "validation")
_PACKAGES = ("mmsr-jax", "numpy", "SimpleITK", "tensorflow-datasets")


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
    shape_px: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    split: str
    validation_from_slice: int | None
    air: float
    tissue: float
    tissue_level: float
    anchor_method: str
    stored_offset: float
    stored_step: float
    patches: dict[str, int]
    valid_positions: int
    rejected: dict[str, int]

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

    patch_px: int
    dtype: str
    cases: tuple[CaseCard, ...]
    shards: dict[str, int]

    def patches(self, split: str) -> int:
        """Number of patches of "train" or "validation"."""
        return sum(case.patches[split] for case in self.cases)


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

    domain: str
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

    scale: int
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
        card = _from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _from_json(data: dict[str, Any]) -> DatasetCard:
    if data["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {data['format_version']}, this program reads {FORMAT_VERSION}")
    low, high = data["window_hu"]
    return DatasetCard(
        **data
        | {
            "window_hu": (low, high),
            "clinical": _domain_from_json(data["clinical"]),
            "micro": _domain_from_json(data["micro"]),
            "held_out": tuple(HeldOutScan(**scan) for scan in data["held_out"]),
            "skipped": tuple(SkippedCase(**case) for case in data.get("skipped", ())),
        }
    )


def _domain_from_json(data: dict[str, Any]) -> DomainCard:
    cases = tuple(case_from_json(case) for case in data["cases"])
    return DomainCard(**data | {"cases": cases, "shards": dict(data["shards"].items())})


def case_from_json(data: dict[str, Any]) -> CaseCard:
    """A case's card from what `json` reads of it."""
    triples = {name: tuple(data[name]) for name in ("shape_px", "spacing_mm")}
    return CaseCard(**data | triples)


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
