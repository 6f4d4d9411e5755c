"""Super-resolution of a whole scan, streamed from its file to the output's.

`super_resolve_scan` is the table of contents; memory is that of a few slices, however many the scan
has.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines import writers
from data_pipelines.dicom_series import is_dicom
from data_pipelines.errors import UserError
from data_pipelines.hounsfield import check_hounsfield
from data_pipelines.slices import SliceReader, open_slices
from data_pipelines.unfinished_output import (
    UnfinishedOutput,
    finish_publishing,
    unfinished_output,
)
from data_pipelines.writers import SliceWriter, VolumeSpec
from mmsr_jax.inference import scan_report
from mmsr_jax.inference.ensemble import ALL_TURNS, AS_IT_IS, Ensemble, Turn, check_alike
from mmsr_jax.inference.finishing import Finishing, consistency
from mmsr_jax.inference.memory import plan
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.options import Options, Outputs, output_paths, scan_folder
from mmsr_jax.inference.pipeline import overlap
from mmsr_jax.inference.region import bounds, box, open_region
from mmsr_jax.inference.slice_work import SliceWork, Writers
from mmsr_jax.inference.tiles import Window, seen_window
from mmsr_jax.mesh import data_mesh, split_batch
from mmsr_jax.processes import share, step_of_all

_MICRO_PIXEL_MM = 0.2  # finer scans are not clinical ones
_NO_SPACING = "give --spacing=x,y,z in mm"
_CORES_A_WRITER = 4  # computing and the formats' compression use threads of their own


def super_resolve_scan(
    models: Sequence[SuperResolver],
    options: Options,
    *,
    progress: bool = False,
    warn: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Super-resolve a scan with one model, or with the mean of several.

    The slices are shared among all processes of JAX, and in each among its devices; every process
    writes its own. A run that was stopped is continued by the same call.

    Args:
      models: of one scale and window.
      options: what to do.
      progress: show a progress bar on standard error.
      warn: called with a line that the user should see.
      stopped: asked after every few slices; what is written by then is kept.

    Returns:
      The report that lies beside the output.

    Raises:
      data_pipelines.errors.UserError: see its message; no output is left under its name.
      KeyboardInterrupt: it was stopped.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with step_of_all():
            outputs, work, settings = _opened(stack, models, options, warn)
        unfinished, work = _laid_out(stack, outputs, work, settings, options, warn)
        done = unfinished.done()
        with step_of_all():  # every process knows what is done before any does more
            missing = share([index for index in work.box.slices if index not in done])
        with step_of_all(), _kept_for_another_try(outputs.fine):
            seconds = _run(work, missing, unfinished, progress, stopped)
        with step_of_all(), _kept_for_another_try(outputs.fine):
            if jax.process_index() == 0:
                for writer in work.all_writers():
                    writer.finish()
                figures = _figures(work, unfinished)
                report = {
                    "input": {"path": str(options.scan)} | settings["input_grid"],
                    "output": scan_report.written(outputs) | _fine_grid(work),
                    "settings": settings,
                    "models": [dict(model.provenance) for model in models],
                    "slices_of_an_earlier_run": len(done),
                    "consistency": consistency(figures, work.finishing.window_hu),
                    "seconds": seconds | {"total": time.perf_counter() - start},
                    "machine": scan_report.machine(),
                }
                _publish(work, outputs, unfinished, report)
    return json.loads(outputs.report.read_text())


def _opened(
    stack: contextlib.ExitStack,
    models: Sequence[SuperResolver],
    options: Options,
    warn: Callable[[str], None],
) -> tuple[Outputs, SliceWork, dict[str, Any]]:
    """Everything but the writers, checked; and the settings."""
    check_alike(models)
    turns = ALL_TURNS if options.self_ensemble else (AS_IT_IS,)
    if jax.process_index() == 0:
        finish_publishing(options.output)
    outputs = output_paths(options, ensemble=len(models) * len(turns) > 1)
    scan = scan_folder(options.scan)
    reader = stack.enter_context(
        open_slices(scan, series=options.series, spacing_mm=options.spacing_mm, remedy=_NO_SPACING)
    )
    check_hounsfield(iter(reader), str(scan))
    _warn_of_the_scan(reader, options, warn)
    part = box(options.roi, options.slices, reader)
    region = stack.enter_context(open_region(options.region, reader, str(scan)))
    focus = part.window if region.mask is None else bounds(region.mask, part)
    if focus is None:
        raise UserError(f"--region={options.region} has no voxel there; choose another")
    model = models[0]
    finishing = Finishing(model.scale, model.window_hu, options.consistency, options.outside)
    ensemble = _ensemble(models, turns, focus, reader, options.device_memory_gb)
    work = SliceWork(reader, part, focus, region.mask, ensemble, finishing)
    return outputs, work, scan_report.settings(options, models, reader, region)


def _warn_of_the_scan(reader: SliceReader, options: Options, warn: Callable[[str], None]) -> None:
    spacing_mm = reader.geometry.spacing_mm
    if max(spacing_mm[:2]) < _MICRO_PIXEL_MM:
        x, y, _ = spacing_mm
        warn(
            f"warning: {options.scan} has pixels of {x:.3g} x {y:.3g} mm, as fine as micro CT; "
            "the models are made for clinical scans"
        )
    given = options.spacing_mm
    if given and not np.allclose(sorted(given), sorted(spacing_mm)):
        warn(f"warning: {options.scan} says its own spacing, {spacing_mm} mm; --spacing is ignored")
    if options.keep_patient and not is_dicom(reader.files[0]):
        raise UserError(f"{options.scan} is no DICOM; leave --keep-patient out")


def _ensemble(
    models: Sequence[SuperResolver],
    turns: Sequence[Turn],
    focus: Window,
    reader: SliceReader,
    device_memory_gb: float | None,
) -> Ensemble:
    size = reader.shape[1:]
    budget = None if device_memory_gb is None else round(device_memory_gb * 1e9)
    plans = [
        plan(model.network, seen_window(model.network, focus, size).shape, budget)
        for model in models
    ]
    devices = split_batch(data_mesh(jax.local_devices()))
    return Ensemble(models, plans, turns, lambda images: jax.device_put(images, devices))


def _specs(outputs: Outputs, work: SliceWork) -> list[VolumeSpec]:
    """Of the super-resolved volume, the disagreement and the deviation."""
    rows, columns = work.box.window.shape
    fine = work.finishing.scale
    specs = []
    for scale, what in (
        (fine, f"super-resolved {fine}x"),
        (1, "|scan - pooled super-resolution|"),
        (fine, f"deviation of the super-resolution {fine}x"),
    ):
        shape = (len(work.box.slices), scale * rows, scale * columns)
        geometry = work.box.geometry(work.reader.geometry, scale)
        specs.append(VolumeSpec(shape, np.dtype(np.int16), geometry, f"mmsr-jax, {what}"))
    for path, spec in zip(outputs, specs, strict=False):
        if path is not None:
            writers.check_size(path, spec)
    return specs


def _fine_grid(work: SliceWork) -> dict[str, Any]:
    scale, (rows, columns) = work.finishing.scale, work.box.window.shape
    geometry = work.box.geometry(work.reader.geometry, scale)
    return scan_report.grid((len(work.box.slices), scale * rows, scale * columns), geometry)


def _laid_out(
    stack: contextlib.ExitStack,
    outputs: Outputs,
    work: SliceWork,
    settings: Mapping[str, Any],
    options: Options,
    warn: Callable[[str], None],
) -> tuple[UnfinishedOutput, SliceWork]:
    """The working folder, and the work with its writers; those of process 0 are laid out first."""
    process = jax.process_index()

    def entered() -> tuple[UnfinishedOutput, SliceWork]:
        unfinished = stack.enter_context(unfinished_output(outputs.fine, settings, process=process))
        folder, source = unfinished.folder, work.reader.files[0]
        made = _writers(outputs, _specs(outputs, work), folder, source, options.keep_patient)
        return unfinished, dataclasses.replace(work, writers=made)

    with step_of_all(), _kept_for_another_try(outputs.fine):
        if process == 0:
            unfinished, work_of_all = entered()
            for writer in work_of_all.all_writers():
                writer.create()
            if unfinished.dropped:
                warn(f"{unfinished.dropped} slices of an earlier run, with other settings, go")
            if done := len(unfinished.done()):
                warn(f"{done} slices of an earlier run are kept")
    with step_of_all():
        return (unfinished, work_of_all) if process == 0 else entered()


def _writers(
    outputs: Outputs, specs: Sequence[VolumeSpec], folder: Path, scan: Path, keep_patient: bool
) -> Writers:
    source = scan if is_dicom(scan) else None

    def writer(name: str, path: Path, spec: VolumeSpec) -> SliceWriter:
        own = folder / name
        own.mkdir(exist_ok=True)
        return writers.open_writer(
            path,
            own,
            spec,
            source=source,
            keep_patient=keep_patient,
            identity=folder / "identity.json",
        )

    fine, disagreement, deviation = specs
    return Writers(
        writer("fine", outputs.fine, fine),
        writer("disagreement", outputs.disagreement, disagreement),
        None if outputs.deviation is None else writer("deviation", outputs.deviation, deviation),
    )


def _run(
    work: SliceWork,
    missing: Sequence[int],
    unfinished: UnfinishedOutput,
    progress: bool,
    stopped: Callable[[], bool],
) -> dict[str, float]:
    """Super-resolve the slices that are missing; seconds of each stage."""
    size = min(plan.slices for plan in work.ensemble.plans) * len(jax.local_devices())
    with tqdm(total=len(missing), unit="slice", disable=not progress, dynamic_ncols=True) as bar:

        def record(figures: dict[int, dict[str, float]]) -> None:
            for index, values in figures.items():
                unfinished.record(index, values)
            bar.update(len(figures))

        return overlap(
            work.batches(missing, size),
            work.read,
            work.compute,
            work.write,
            writers=max(1, (os.cpu_count() or 1) // _CORES_A_WRITER),
            done=record,
            stopped=stopped,
        )


def _figures(work: SliceWork, unfinished: UnfinishedOutput) -> list[dict[str, float]]:
    """Of every slice."""
    done = unfinished.done()
    absent = [index for index in work.box.slices if index not in done]
    if absent:
        raise UserError(f"slices {absent[:5]} were written by no process; run the command again")
    return [done[index] for index in work.box.slices]


def _publish(
    work: SliceWork, outputs: Outputs, unfinished: UnfinishedOutput, report: dict[str, Any]
) -> None:
    """Put everything under its name; the super-resolved volume last, as the sign of all."""
    volumes = work.writers
    assert volumes is not None
    saved = unfinished.folder / "report.json"
    scan_report.save(report, saved)
    payloads = [(saved, outputs.report), (volumes.disagreement.payload, outputs.disagreement)]
    if outputs.deviation is not None and volumes.deviation is not None:
        payloads.append((volumes.deviation.payload, outputs.deviation))
    elif outputs.stale is not None:
        writers.put_in_place(outputs.stale, unfinished.folder / outputs.stale.name)
    unfinished.publish([*payloads, (volumes.fine.payload, outputs.fine)])


@contextlib.contextmanager
def _kept_for_another_try(output: Path) -> Iterator[None]:
    """A full disk is one line; what is written by then is kept."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or output} cannot be written: {error.strerror or error}; what is "
            "done is kept: make room and run the same command again"
        ) from error
