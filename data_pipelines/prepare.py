"""Volumes in, dataset out: python -m data_pipelines.prepare --clinical=P --micro=P --output=DIR.

The dataset is a directory with sharded TFRecords of patches, `dataset_card.json`, and
`sheet.png`, which shows masks, sampled positions, patches and histograms: look at it before
training. It is written beside the output under another name and renamed when it is complete; the
same command takes over the cases that a run finished before it was stopped.
"""

import dataclasses
import math
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from data_pipelines.beam_runner import BeamRunner
from data_pipelines.command_line import parse_flags
from data_pipelines.dataset_card import (
    DOMAINS,
    CaseCard,
    DatasetCard,
    DomainCard,
    HeldOutScan,
    SkippedCase,
    installed_software,
)
from data_pipelines.errors import UserError, reported_in_one_line
from data_pipelines.find_cases import find_cases
from data_pipelines.intensity import CLINICAL_WINDOW_HU
from data_pipelines.local_runner import LocalRunner
from data_pipelines.replaced_directory import replaced_directory, staging_of
from data_pipelines.stage_case import CaseTask, DomainOptions, StagedCase, stage_case
from data_pipelines.staging import BadCase, Run, forget_others, stage_all

SHEET_NAME = "sheet.png"
RUNNERS = ("local", "beam")
_SPACING_TOLERANCE = 1.25  # ratio of the pixel sizes against the scale, before it is worth a word


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `prepare` does; the command line has a flag of the same name for each field.

    Attributes:
        clinical: files, folders and glob patterns of the low-resolution domain.
        micro: the same of the high-resolution domain.
        output: directory of the dataset.
        scale: micro pixels a clinical pixel along one axis.
        clinical_patch: height and width of a clinical patch; micro ones are `scale` times larger.
        patches_per_volume: number of patches a case.
        validation_fraction: of the cases of a domain, at least one; of the usable slices and of
            the patches where a domain has one case.
        seed: of split and sampling.
        runner: "local", in processes of this machine, or "beam". The result does not depend on it.
        workers: processes of the local runner; None for one a core. Nor on it.
        beam_options: of Beam's pipelines, such as "--runner=FlinkRunner".
        series: SeriesInstanceUID, for a clinical folder with several DICOM series.
        clinical_spacing: (x, y, z) in mm, for files that say none, as TIFF and PNG.
        clinical_mask: "lung", or "none" for scans that are cropped to the inside of lungs.
        micro_mask: "specimen" or "none".
        micro_spacing: the same for micro.
        invert_micro: tissue is darker than air.
        micro_air: value of air; estimated if None.
        micro_tissue: value of soft tissue; estimated if None.
        micro_any_plane: sample micro patches in all three planes; needs cubic voxels.
        resample_um: micro pixel size to resample to; the clinical one divided by the scale makes
            the domains match physically. None keeps the pixels, as in the paper.
        skip_bad: leave out cases that cannot be read or sampled; the card lists them.
        overwrite: replace an existing dataset.
    """

    clinical: tuple[str, ...]
    micro: tuple[str, ...]
    output: Path
    scale: int = 8
    clinical_patch: int = 32
    patches_per_volume: int = 2000
    validation_fraction: float = 0.1
    seed: int = 0
    runner: str = "local"
    workers: int | None = None
    beam_options: tuple[str, ...] = ()
    series: str | None = None
    clinical_spacing: tuple[float, float, float] | None = None
    clinical_mask: str = "lung"
    micro_mask: str = "specimen"
    micro_spacing: tuple[float, float, float] | None = None
    invert_micro: bool = False
    micro_air: float | None = None
    micro_tissue: float | None = None
    micro_any_plane: bool = False
    resample_um: float | None = None
    skip_bad: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise a `UserError` for a value that cannot work."""
        for name, least in (("scale", 1), ("clinical_patch", 4), ("patches_per_volume", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: give at least {least}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation_fraction={self.validation_fraction}: give more than 0, less than 1"
            )
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers={self.workers}: give at least 1")
        if self.runner not in RUNNERS:
            raise UserError(f"--runner={self.runner}: give one of {', '.join(RUNNERS)}")
        if self.beam_options and self.runner != "beam":
            raise UserError(f"--beam_options={','.join(self.beam_options)} needs --runner=beam")
        if (self.micro_air is None) != (self.micro_tissue is None):
            raise UserError("--micro_air and --micro_tissue go together; give both or neither")
        for name in ("micro_air", "micro_tissue"):
            if not math.isfinite(getattr(self, name) or 0):
                raise UserError(f"--{name}={getattr(self, name)}: give a stored value of the scans")
        if self.micro_air is not None and self.micro_air == self.micro_tissue:
            raise UserError(f"--micro_air and --micro_tissue are both {self.micro_air:g}")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: give 0 or more")
        for name in ("clinical_spacing", "micro_spacing"):
            steps = getattr(self, name) or ()
            if not all(0 < step < math.inf for step in steps):
                raise UserError(f"--{name}={','.join(map(str, steps))}: give sizes above 0 mm")
        if self.resample_um is not None and not 0 < self.resample_um < math.inf:
            raise UserError(f"--resample_um={self.resample_um}: give a size in micrometres")

    def domains(self) -> dict[str, DomainOptions]:
        """The options of each domain."""
        return {
            "clinical": DomainOptions(
                patch_px=self.clinical_patch,
                mask=self.clinical_mask,
                hounsfield=True,
                series=self.series,
                spacing_mm=self.clinical_spacing,
            ),
            "micro": DomainOptions(
                patch_px=self.clinical_patch * self.scale,
                mask=self.micro_mask,
                spacing_mm=self.micro_spacing,
                inverted=self.invert_micro,
                air=self.micro_air,
                tissue=self.micro_tissue,
                any_plane=self.micro_any_plane,
                resample_um=self.resample_um,
            ),
        }


def prepare(options: PrepareOptions) -> DatasetCard:
    """Make a dataset from the volumes that the options name.

    Raises:
        UserError: see the message; of what was done, only finished cases are left, in a hidden
            folder beside the output, and the next call takes them over.
    """
    options.check()
    run = BeamRunner(options.beam_options) if options.runner == "beam" else None
    cases = {
        "clinical": find_cases(options.clinical),
        "micro": find_cases(options.micro),
    }
    with replaced_directory(options.output, options.overwrite) as directory:
        return write_dataset(directory, staging_of(directory), options, cases, run=run)


def write_dataset(
    directory: Path,
    staging: Path,
    options: PrepareOptions,
    cases: dict[str, list[Path]],
    *,
    held_out: tuple[HeldOutScan, ...] = (),
    run: Run | None = None,
) -> DatasetCard:
    """Write records, card and sheet into an empty directory; `prepare` without the renaming.

    Args:
        directory: of the dataset.
        staging: where cases wait to be written; those that are there already are taken over.
        options: see `prepare`.
        cases: of each domain.
        held_out: whole scans in the directory.
        run: in which workers; None for processes of this machine.
    """
    staged, skipped = _stage(options, cases, staging, run or LocalRunner(options.workers))
    # TensorFlow takes seconds to import: not in the workers, and not before a likely error.
    from data_pipelines import sheet
    from data_pipelines.ct_patches import ct_patches

    domains = {}
    for name in DOMAINS:
        cards, dtype = _in_one_dtype(staged[name])
        patch_px = options.domains()[name].patch_px
        parts = tuple(part for case in staged[name] for part in case.staged)
        shards = ct_patches.write_domain(
            directory, name, patch_px, dtype, parts, staging, run or LocalRunner(1)
        )
        domains[name] = DomainCard(patch_px, dtype, cards, shards)
    card = DatasetCard(
        scale=options.scale,
        window_hu=CLINICAL_WINDOW_HU,
        seed=options.seed,
        held_out=held_out,
        skipped=skipped,
        clinical=domains["clinical"],
        micro=domains["micro"],
        software=installed_software(),
    )
    card.save(directory)
    previews = {name: [case.preview for case in staged[name]] for name in DOMAINS}
    sheet.draw(card, previews, directory / SHEET_NAME)
    shutil.rmtree(staging)
    _warn_of_spacing(card)
    return card


def _stage(
    options: PrepareOptions, cases: dict[str, list[Path]], staging: Path, run: Run
) -> tuple[dict[str, list[StagedCase]], tuple[SkippedCase, ...]]:
    """The staged cases of each domain, assigned to the splits, and those that are left out."""
    tasks = [task for name in DOMAINS for task in case_tasks(name, options, cases[name], staging)]
    forget_others(staging, tasks)
    outcomes = stage_all(tasks, stage_case, run, skip_bad=options.skip_bad)
    bad = [outcome for outcome in outcomes if isinstance(outcome, BadCase)]
    staged = {}
    for name in DOMAINS:
        of_domain = [
            found for task, found in zip(tasks, outcomes, strict=True) if task.domain == name
        ]
        whole = [found for found in of_domain if isinstance(found, StagedCase)]
        if not whole:
            first = next(case.message for case in bad if case.task.domain == name)
            raise UserError(f"no {name} case is left: {first}")
        if len(whole) == 1 < len(of_domain):  # it was to serve one split, and must serve both
            path = cases[name][of_domain.index(whole[0])]
            alone = case_tasks(name, options, [path], staging)
            of_domain = stage_all(alone, stage_case, run, skip_bad=False)
            whole = [found for found in of_domain if isinstance(found, StagedCase)]
        staged[name] = _in_splits(name, options, whole)
    return staged, tuple(case.for_card() for case in bad)


def case_tasks(
    domain: str, options: PrepareOptions, paths: Sequence[Path], staging: Path
) -> list[CaseTask]:
    """Say how many patches each case of a domain gives: the only one to both splits."""
    count = options.patches_per_volume
    share = {"train": count}
    if len(paths) == 1:
        kept = max(1, round(options.validation_fraction * count))
        share = {"train": max(1, count - kept), "validation": kept}
    return [
        CaseTask(
            domain=domain,
            index=index,
            path=path,
            patches=share,
            validation_fraction=options.validation_fraction,
            seed=options.seed,
            directory=staging,
            options=options.domains()[domain],
        )
        for index, path in enumerate(paths)
    ]


def _in_splits(
    domain: str, options: PrepareOptions, cases: Sequence[StagedCase]
) -> list[StagedCase]:
    """Assign the staged cases of a domain to the splits, at least one to each."""
    if len(cases) == 1:
        return list(cases)
    order = np.random.default_rng([options.seed, DOMAINS.index(domain)]).permutation(len(cases))
    kept = min(max(1, round(options.validation_fraction * len(cases))), len(cases) - 1)
    validation = set(order[:kept].tolist())
    return [
        case.serving("validation" if index in validation else "train", index)
        for index, case in enumerate(cases)
    ]


def _in_one_dtype(staged: Sequence[StagedCase]) -> tuple[tuple[CaseCard, ...], str]:
    """Cards and dtype of a domain; if dtypes differ, int16 is stored as shifted uint16."""
    dtypes = {case.dtype for case in staged}
    if len(dtypes) == 1:
        return tuple(case.card for case in staged), dtypes.pop()
    cards = []
    for case in staged:
        card = case.card
        if case.dtype == "int16":
            offset = card.stored_offset - 32768 * card.stored_step
            card = dataclasses.replace(card, stored_offset=offset)
        cards.append(card)
    return tuple(cards), "uint16"


def _warn_of_spacing(card: DatasetCard) -> None:
    clinical, micro = (
        float(np.median([case.spacing_mm[0] for case in domain.cases]))
        for domain in (card.clinical, card.micro)
    )
    ratio = clinical / micro
    if abs(math.log(ratio / card.scale)) > math.log(_SPACING_TOLERANCE):
        print(
            f"warning: clinical pixels ({clinical:.4g} mm) are {ratio:.4g} times as large as micro "
            f"pixels ({micro:.4g} mm), while the scale is {card.scale}; "
            f"--resample_um={1000 * clinical / card.scale:.4g} would make them match",
            file=sys.stderr,
        )


# ---- command line -----------------------------------------------------------------------------


def _define_flags() -> None:
    """One flag for each field of `PrepareOptions`; not at import, which libraries do too."""
    flags.DEFINE_list("clinical", None, "Clinical CT: comma-separated files, folders and globs.")
    flags.DEFINE_list("micro", None, "Micro-CT: comma-separated files, folders and globs.")
    flags.DEFINE_string("output", None, "Directory of the dataset.")
    flags.DEFINE_integer("scale", 8, "Micro pixels a clinical pixel along one axis.")
    flags.DEFINE_integer("clinical_patch", 32, "Clinical patch size; micro is scale times larger.")
    flags.DEFINE_integer("patches_per_volume", 2000, "Patches a case.")
    flags.DEFINE_float("validation_fraction", 0.1, "Share of cases for validation, at least one.")
    flags.DEFINE_integer("seed", 0, "Of split and sampling.")
    flags.DEFINE_enum("runner", "local", RUNNERS, "Processes of this machine, or Apache Beam.")
    flags.DEFINE_integer("workers", None, "Local processes; one a core by default.")
    flags.DEFINE_multi_string(
        "beam_options",
        [],
        "Of Beam's pipelines, comma-separated or repeated, such as --runner=DataflowRunner. "
        "Scans and output must lie where all workers see them under the same paths.",
    )
    flags.DEFINE_string("series", None, "SeriesInstanceUID, for a folder with several series.")
    flags.DEFINE_enum("clinical_mask", "lung", ["lung", "none"], "Where clinical patches lie.")
    flags.DEFINE_enum("micro_mask", "specimen", ["specimen", "none"], "Where micro patches lie.")
    for name in ("clinical_spacing", "micro_spacing"):
        flags.DEFINE_list(name, None, "x,y,z in mm, for files that say none, as TIFF and PNG.")
    flags.DEFINE_boolean("invert_micro", False, "Tissue is darker than air in micro images.")
    flags.DEFINE_float("micro_air", None, "Micro value of air; estimated by default.")
    flags.DEFINE_float("micro_tissue", None, "Micro value of tissue; estimated by default.")
    flags.DEFINE_boolean("micro_any_plane", False, "Sample micro in 3 planes; cubic voxels only.")
    flags.DEFINE_float("resample_um", None, "Micro pixel size to resample to; none by default.")
    flags.DEFINE_boolean("skip_bad", False, "Leave out bad cases; the card lists them.")
    flags.DEFINE_boolean("overwrite", False, "Replace an existing dataset.")


def _options_from_flags() -> PrepareOptions:
    values = {
        field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(PrepareOptions)
    }
    for name in ("clinical", "micro", "output"):
        if not values[name]:
            raise UserError(f"--{name} is missing; --help lists all flags")
    for name in ("clinical_spacing", "micro_spacing"):
        if values[name] is not None:
            values[name] = _spacing(name, values[name])
    return PrepareOptions(
        **values
        | {
            "clinical": tuple(values["clinical"]),
            "micro": tuple(values["micro"]),
            "output": Path(values["output"]),
            "beam_options": tuple(
                option
                for given in values["beam_options"]
                for option in re.split(",(?=--)", given)  # an option may hold commas itself
            ),
        }
    )


def _spacing(name: str, values: Sequence[str]) -> tuple[float, float, float]:
    try:
        x, y, z = (float(step) for step in values)
    except ValueError:
        raise UserError(f"--{name}={','.join(values)}: give x,y,z in mm") from None
    return x, y, z


def _main(argv: Sequence[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the partial output goes
    with reported_in_one_line():
        if len(argv) > 1:
            raise UserError(f"{argv[1]} is not a flag; quote patterns, and join paths by commas")
        options = _options_from_flags()
        card = prepare(options)
    for name in DOMAINS:
        domain = card.domain(name)
        print(
            f"{name}: {len(domain.cases)} cases, {domain.patches('train')} training and "
            f"{domain.patches('validation')} validation patches of {domain.patch_px} px"
        )
    print(f"look at {options.output / SHEET_NAME} before training")


if __name__ == "__main__":
    _define_flags()
    app.run(_main, flags_parser=parse_flags)
