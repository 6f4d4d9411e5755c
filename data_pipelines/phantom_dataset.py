"""The embedded dataset: phantom volumes, prepared in the ordinary way."""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines import volumes
from data_pipelines.dataset_card import DatasetCard, HeldOutScan
from data_pipelines.local_runner import LocalRunner
from data_pipelines.phantom import phantom_volumes
from data_pipelines.prepare import PrepareOptions, write_dataset
from data_pipelines.replaced_directory import replaced_directory

_AIR_HU = -1000.0  # phantom micro volumes are calibrated like clinical ones
_TISSUE_HU = 40.0


@dataclasses.dataclass(frozen=True)
class _Phantom:
    """One phantom to make; an image without a path is not kept."""

    seed: int
    size_px: int
    slices: int
    scale: int
    clinical: Path | None
    micro: Path | None


def prepare_phantom(
    directory: str | Path,
    *,
    cases: int = 16,
    size_px: int = 512,
    slices: int = 16,
    held_out_cases: int = 4,
    patches_per_volume: int = 200,
    clinical_patch: int = 32,
    scale: int = 8,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> DatasetCard:
    """Make a dataset of lung phantoms with held-out scans whose truth is known.

    Args:
        directory: of the dataset; the volumes are kept in its `volumes`.
        cases: training and validation phantoms a domain; none serves both domains.
        size_px: height and width of a micro slice.
        slices: of a volume.
        held_out_cases: phantoms that are imaged in both modalities.
        patches_per_volume: patches a case.
        clinical_patch: height and width of a clinical patch.
        scale: micro pixels a clinical pixel along one axis.
        seed: of everything.
        workers: processes; None for one a core.
        overwrite: replace an existing dataset.

    Raises:
        UserError: the directory exists, or the volumes are too small for the patches.
    """
    options = PrepareOptions(
        clinical=(),
        micro=(),
        output=Path(directory),
        scale=scale,
        clinical_patch=clinical_patch,
        patches_per_volume=patches_per_volume,
        seed=seed,
        workers=workers,
        clinical_mask="none",  # a phantom lies inside a lung
        micro_mask="none",
        micro_air=_AIR_HU,
        micro_tissue=_TISSUE_HU,
    )
    options.check()
    with replaced_directory(options.output, overwrite) as partial:
        folder = partial / "volumes"
        folder.mkdir()
        clinical = [folder / f"train_clinical_{index:03d}.nii.gz" for index in range(cases)]
        micro = [folder / f"train_micro_{index:03d}.nii.gz" for index in range(cases)]
        held_out = [
            (
                folder / f"held_out_{i:03d}_clinical.nii.gz",
                folder / f"held_out_{i:03d}_micro.nii.gz",
            )
            for i in range(held_out_cases)
        ]
        images = [(path, None) for path in clinical] + [(None, path) for path in micro] + held_out
        seeds = np.random.SeedSequence(seed).generate_state(len(images))
        phantoms = [
            _Phantom(int(seeds[index]), size_px, slices, scale, *paths)
            for index, paths in enumerate(images)
        ]
        LocalRunner(workers)(_write_phantom, phantoms, "making phantoms")
        return write_dataset(
            partial,
            folder / "staging",
            options,
            {"clinical": clinical, "micro": micro},
            held_out=tuple(
                HeldOutScan(*(str(path.relative_to(partial)) for path in pair)) for pair in held_out
            ),
        )


def _write_phantom(phantom: _Phantom) -> None:
    clinical, micro = phantom_volumes(phantom.seed, phantom.size_px, phantom.slices, phantom.scale)
    for volume, path in ((clinical, phantom.clinical), (micro, phantom.micro)):
        if path is not None:
            volumes.write_volume(volume, path)
