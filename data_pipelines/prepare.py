"""Volumes in, dataset out: python -m data_pipelines.prepare --clinical=P --micro=P --output=DIR.

The dataset is a directory with sharded TFRecords of patches, `dataset_card.json`, and
`sheet.png`, which shows masks, sampled positions, patches and histograms: look at it before
training. It is written beside the output under another name and renamed when it is complete.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import math
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from data_pipelines.command_line import parse_flags
from data_pipelines.dataset_card import (
    CARD_NAME,
    DOMAINS,
    CaseCard,
    DatasetCard,
    DomainCard,
    HeldOutScan,
)
from data_pipelines.errors import UserError, reported_in_one_line
from data_pipelines.find_cases import find_cases
from data_pipelines.intensity import CLINICAL_WINDOW_HU
from data_pipelines.output_folder import check_writable, made
from data_pipelines.stage_case import CaseTask, DomainOptions, StagedCase, stage_case

SHEET_NAME = "sheet.png"
_PACKAGES = ("mmsr-jax", "numpy", "SimpleITK", "tensorflow-datasets")
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
        workers: processes; None for one a core. The result does not depend on it.
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
    workers: int | None = None
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
        UserError: see the message; nothing is left behind.
    """
    options.check()
    cases = {
        "clinical": find_cases(options.clinical),
        "micro": find_cases(options.micro),
    }
    with replaced_directory(options.output, options.overwrite) as partial:
        return write_dataset(partial, options, cases)


@contextlib.contextmanager
def replaced_directory(output: Path, overwrite: bool) -> Iterator[Path]:
    """An empty directory beside `output` that takes its place if all goes well, else vanishes.

    Raises:
        UserError: `output` exists and may not be overwritten, is not a dataset, or lies in a
            locked folder.
    """
    output = output.resolve()
    check_writable(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not (output / CARD_NAME).is_file():
            raise UserError(f"{output} exists and is not a dataset; choose another directory")
        if not overwrite:
            raise UserError(f"{output} exists; choose another directory or pass --overwrite")
    partial = output.with_name(f".{output.name}.partial")
    old = output.with_name(f".{output.name}.old")
    with made(output.parent):
        # A run that was killed may have left these.
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            if output.exists():
                output.rename(old)
            partial.rename(output)
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_dataset(
    directory: Path,
    options: PrepareOptions,
    cases: dict[str, list[Path]],
    held_out: tuple[HeldOutScan, ...] = (),
) -> DatasetCard:
    """Write records, card and sheet into an empty directory; `prepare` without the renaming."""
    staging = directory / "staging"
    staging.mkdir()
    tasks = [task for name in DOMAINS for task in case_tasks(name, options, cases[name], staging)]
    staged = in_processes(stage_case, tasks, options.workers, "reading volumes")
    # TensorFlow takes seconds to import: not in the workers, and not before a likely error.
    from data_pipelines import sheet
    from data_pipelines.ct_patches import ct_patches

    domains = {}
    for name in DOMAINS:
        done = [case for task, case in zip(tasks, staged, strict=True) if task.domain == name]
        cards, dtype = _in_one_dtype(done)
        patch_px = options.domains()[name].patch_px
        parts = tuple(part for case in done for part in case.staged)
        shards = ct_patches.write_domain(directory, name, patch_px, dtype, parts)
        domains[name] = DomainCard(patch_px, dtype, cards, shards)
    card = DatasetCard(
        scale=options.scale,
        window_hu=CLINICAL_WINDOW_HU,
        seed=options.seed,
        held_out=held_out,
        clinical=domains["clinical"],
        micro=domains["micro"],
        software={"python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
    )
    card.save(directory)
    previews = {
        name: [
            case.preview for task, case in zip(tasks, staged, strict=True) if task.domain == name
        ]
        for name in DOMAINS
    }
    sheet.draw(card, previews, directory / SHEET_NAME)
    shutil.rmtree(staging)
    _warn_of_spacing(card)
    return card


def case_tasks(
    domain: str, options: PrepareOptions, paths: Sequence[Path], staging: Path
) -> list[CaseTask]:
    """Assign the cases of a domain to the splits, and say how many patches each one gives."""
    count, fraction = options.patches_per_volume, options.validation_fraction
    if len(paths) == 1:
        kept = max(1, round(fraction * count))
        shares = [{"train": max(1, count - kept), "validation": kept}]
    else:
        order = np.random.default_rng([options.seed, DOMAINS.index(domain)]).permutation(len(paths))
        kept = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        validation = set(order[:kept].tolist())
        shares = [
            {"validation" if index in validation else "train": count} for index in range(len(paths))
        ]
    return [
        CaseTask(
            domain=domain,
            index=index,
            path=path,
            patches=share,
            validation_fraction=fraction,
            seed=options.seed,
            directory=staging,
            options=options.domains()[domain],
        )
        for index, (path, share) in enumerate(zip(paths, shares, strict=True))
    ]


def in_processes(function: Any, tasks: Sequence[Any], workers: int | None, label: str) -> list[Any]:
    """[function(task) for task in tasks], in several processes, with a progress bar."""
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    bar = tqdm(total=len(tasks), desc=label, unit="case", disable=None, leave=False)
    with bar, contextlib.ExitStack() as stack:
        if workers == 1:
            return [(function(task), bar.update())[0] for task in tasks]
        others = set(multiprocessing.active_children())
        pool = stack.enter_context(
            concurrent.futures.ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_die_with_parent,
            )
        )
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in futures:  # in order, so that the first bad case is the one reported
                future.result()
                bar.update()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for lack of memory; "
                f"use fewer than --workers={workers}"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        return [future.result() for future in futures]


def _die_with_parent() -> None:
    """End this worker when its parent is gone, also after kill -9, and quietly on Ctrl-C."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_one_dtype(staged: Sequence[StagedCase]) -> tuple[tuple[CaseCard, ...], str]:
    """Cards and dtype of a domain; if the dtypes differ, int16 patches become uint16, shifted."""
    dtypes = {case.dtype for case in staged}
    if len(dtypes) == 1:
        return tuple(case.card for case in staged), dtypes.pop()
    cards = []
    for case in staged:
        card = case.card
        if case.dtype == "int16":
            for part in case.staged:
                patches = np.load(part.patches)
                np.save(part.patches, (patches.astype(np.int32) + 32768).astype(np.uint16))
            offset = card.stored_offset - 32768 * card.stored_step
            card = dataclasses.replace(card, stored_offset=offset)
        cards.append(card)
    return tuple(cards), "uint16"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


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
    flags.DEFINE_integer("workers", None, "Processes; one a core by default.")
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
