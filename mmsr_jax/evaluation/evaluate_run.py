"""A run's model on everything that can be measured, beside bicubic and nearest interpolation."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import dataset_card, volumes
from data_pipelines.errors import UserError
from data_pipelines.intensity import clinical_intensity
from data_pipelines.patches import validation_patches
from data_pipelines.typed_json import from_json, typed
from mmsr_jax.config import Config, config_from_dict
from mmsr_jax.evaluation.ground_truth import degradation, degrade
from mmsr_jax.evaluation.interpolation import bicubic, nearest
from mmsr_jax.evaluation.phantom_cases import PhantomCase, phantom_cases
from mmsr_jax.evaluation.real_images import RealImage
from mmsr_jax.evaluation.sections import (
    PhantomImages,
    Section,
    SuperResolve,
    pairs_section,
    phantom_sections,
    realism_section,
    scans_section,
    super_resolve_phantom,
)
from mmsr_jax.inference.model import SuperResolver

MODEL, BICUBIC, NEAREST = "SR", "bicubic", "nearest"
PHANTOMS = 6
_FILE = "evaluation.json"
_REALISM_PATCHES = 256


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of one run."""

    config: Config
    step: int
    window_hu: tuple[float, float]
    sections: list[Section]


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """The evaluation's phantoms, and what each method made of them."""

    cases: list[PhantomCase]
    images: dict[str, list[PhantomImages]]


def methods(model: SuperResolver) -> dict[str, SuperResolve]:
    """The model and the rivals that need no training."""
    return {
        NEAREST: partial(nearest, scale=model.scale),
        BICUBIC: partial(bicubic, scale=model.scale),
        MODEL: model.normalised,
    }


def evaluate(
    model: SuperResolver,
    dataset: Path,
    *,
    clinical: Sequence[RealImage] = (),
    micro: Mapping[str, Sequence[RealImage]] | None = None,
    phantoms: int = PHANTOMS,
) -> tuple[list[Section], Phantoms]:
    """All sections, and the phantoms as every method shows them.

    Args:
      model: of the run.
      dataset: prepared; its held-out pairs and validation patches are used.
      clinical: squares of real scans: consistency.
      micro: sets of real micro images by name: degraded, super-resolved, compared.
      phantoms: how many.

    Raises:
      UserError: `dataset` is none, or has another scale than the model.
    """
    card = dataset_card.load(dataset)
    if card.scale != model.scale:
        raise UserError(f"{dataset} has a scale of {card.scale}, the model of {model.scale}")
    by_name, window_hu = methods(model), model.window_hu
    cases = phantom_cases(phantoms, window_hu=window_hu, scale=model.scale)
    images = {
        name: [super_resolve_phantom(method, case) for case in cases]
        for name, method in by_name.items()
    }
    sections = phantom_sections(images, cases, window_hu)
    if card.held_out:
        pairs = _held_out(dataset, card, window_hu)
        sections.append(
            pairs_section("Held-out scans against their truth", by_name, pairs, window_hu)
        )
    patches = validation_patches(dataset, _REALISM_PATCHES)
    scans, references = (patches[name][..., 0] for name in ("clinical", "micro"))
    if len(references) > 1:
        sections.append(realism_section(by_name, scans, references, window_hu))
    for name, micro_images in (micro or {}).items():
        pairs = (
            (degrade(one.image, model.scale, window_hu, seed), one.image)
            for seed, one in enumerate(micro_images)
        )
        title = f"Real micro images {name}, degraded {model.scale}×"
        sections.append(pairs_section(title, by_name, pairs, window_hu, degradation(model.scale)))
    if clinical:
        sections.append(scans_section(by_name, [one.image for one in clinical], window_hu))
    return sections, Phantoms(cases, images)


def _held_out(
    dataset: Path, card: dataset_card.DatasetCard, window_hu: tuple[float, float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    normalise = clinical_intensity(window_hu).normalise
    for scan in card.held_out:
        clinical, micro = (
            volumes.read_volume(dataset / path).array for path in (scan.clinical, scan.micro)
        )
        for coarse, fine in zip(clinical, micro, strict=True):
            yield normalise(coarse), normalise(fine)


def save(evaluation: Evaluation, run: Path) -> Path:
    """Write `evaluation.json` into the run; values that are not finite become null."""
    path = run / _FILE
    values = _finite(dataclasses.asdict(evaluation)) | {"data_range": 2.0}
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    os.replace(partial_path, path)
    return path


def load(run: Path) -> Evaluation | None:
    """What `save` wrote into a run, if it did; null values are NaN again.

    Raises:
      UserError: the file is damaged.
    """
    path = run / _FILE
    if not path.exists():
        return None
    try:
        saved = typed(from_json(path.read_bytes()), _Saved)
        sections = [_section(section) for section in saved.sections]
        config = config_from_dict(saved.config)
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and evaluate again") from error
    return Evaluation(config, saved.step, saved.window_hu, sections)


@dataclasses.dataclass(frozen=True)
class _SavedSection:
    """A `Section` whose values may be null."""

    title: str
    note: str
    methods: dict[str, list[dict[str, float | None]]]


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What `evaluation.json` holds."""

    config: dict[str, Any]
    step: int
    window_hu: tuple[float, float]
    sections: list[_SavedSection]
    data_range: float


def _section(saved: _SavedSection) -> Section:
    missing = {MODEL, NEAREST} - saved.methods.keys()
    if missing:
        raise ValueError(f"{saved.title} lacks {', '.join(missing)}")
    if not all(map(str.isprintable, (saved.title, saved.note, *saved.methods))):
        raise ValueError(f"a text of {saved.title!r} cannot be printed")
    methods = {
        name: [
            {key: math.nan if value is None else value for key, value in case.items()}
            for case in cases
        ]
        for name, cases in saved.methods.items()
    }
    return Section(saved.title, saved.note, methods)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
