"""Super-resolution of a whole scan, streamed from its file to the output's.

`super_resolve_scan` is the table of contents; memory is that of a few slices, however many the scan
has.
"""

import contextlib
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
from data_pipelines.unfinished_output import UnfinishedOutput, unfinished_output
from data_pipelines.writers import SliceWriter, VolumeSpec
from mmsr_jax.inference import scan_report
from mmsr_jax.inference.ensemble import ALL_TURNS, AS_IT_IS, Ensemble, Turn, check_alike
from mmsr_jax.inference.finishing import Finishing, consistency
from mmsr_jax.inference.memory import plan
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.options import Options, Outputs, output_paths
from mmsr_jax.inference.pipeline import overlap
from mmsr_jax.inference.processes import share, wait_for_all
from mmsr_jax.inference.region import Box, bounds, box, open_mask
from mmsr_jax.inference.slice_work import SliceWork, Writers
from mmsr_jax.inference.tiles import Window, seen_window
from mmsr_jax.mesh import data_mesh, split_batch

_MICRO_PIXEL_MM = 0.2  # finer scans are not clinical ones
_NO_SPACING = "give --spacing=x,y,z in mm"
_CORES_A_WRITER = 4  # computing and the formats' compression use threads of their own


def super_resolve_scan(
    models: Sequence[SuperResolver],
    options: Options,
    *,
    progress: bool = False,
    warn: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Super-resolve a scan with one model, or with the mean of several.

    The slices are shared among all processes of JAX, and in each among its devices; every process
    writes its own. A run that was stopped is continued by the same call.

    Args:
      models: of one scale.
      options: what to do.
      progress: show a progress bar on standard error.
      warn: called with a line that the user should see.

    Returns:
      The report that lies beside the output.

    Raises:
      data_pipelines.errors.UserError: see its message; no output is left under its name.
    """
    start = time.perf_counter()
    check_alike(models)
    turns = ALL_TURNS if options.self_ensemble else (AS_IT_IS,)
    outputs = output_paths(options, ensemble=len(models) * len(turns) > 1)
    scan = options.scan.absolute().parent if is_dicom(options.scan) else options.scan
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            open_slices(
                scan, series=options.series, spacing_mm=options.spacing_mm, remedy=_NO_SPACING
            )
        )
        check_hounsfield(iter(reader), str(scan))
        _warn_of_micro_scan(reader, scan, warn)
        part = box(options.roi, options.slices, reader)
        mask = stack.enter_context(open_mask(options.region, reader, str(scan)))
        focus = part.window if mask is None else bounds(mask, part)
        if focus is None:
            raise UserError(f"--region={options.region} has no voxel there; choose another")
        ensemble = _ensemble(models, turns, focus, reader, options.device_memory_gb)
        specs = _specs(outputs, part, reader, models[0])
        settings = scan_report.settings(options, models, reader)
        unfinished, volumes = _laid_out(stack, outputs, specs, settings, reader, options)
        finishing = Finishing(
            models[0].scale, models[0].window_hu, options.consistency, options.outside
        )
        work = SliceWork(reader, part, focus, mask, ensemble, finishing, volumes)
        report = {
            "input": {"path": str(options.scan)} | scan_report.grid(reader.shape, reader.geometry),
            "output": scan_report.written(outputs)
            | scan_report.grid(specs[0].shape, specs[0].geometry),
            "settings": settings,
            "models": [dict(model.provenance) for model in models],
            "slices_of_an_earlier_run": len(unfinished.done()),
            "machine": scan_report.machine(),
        }
        with _kept_for_another_try(outputs.fine):
            seconds = _run(work, unfinished, progress)
            wait_for_all("all slices are written")
            if jax.process_index() == 0:
                for writer in work.all_writers():
                    writer.finish()
                report["consistency"] = consistency(unfinished.done().values(), finishing.window_hu)
                report["seconds"] = seconds | {"total": time.perf_counter() - start}
                _publish(volumes, outputs, unfinished, report)
            wait_for_all("the outputs are in place")
    return json.loads(outputs.report.read_text())


def _warn_of_micro_scan(reader: SliceReader, scan: Path, warn: Callable[[str], None]) -> None:
    x, y, _ = reader.geometry.spacing_mm
    if max(x, y) < _MICRO_PIXEL_MM:
        warn(
            f"warning: {scan} has pixels of {x:.3g} x {y:.3g} mm, as fine as micro CT; "
            "the models are made for clinical scans"
        )


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


def _specs(
    outputs: Outputs, part: Box, reader: SliceReader, model: SuperResolver
) -> list[VolumeSpec]:
    """Of the super-resolved volume, the disagreement and the deviation."""
    rows, columns = part.window.shape
    specs = []
    for scale, what in (
        (model.scale, f"super-resolved {model.scale}x"),
        (1, "|scan - pooled super-resolution|"),
        (model.scale, f"deviation of the super-resolution {model.scale}x"),
    ):
        shape = (len(part.slices), scale * rows, scale * columns)
        geometry = part.geometry(reader.geometry, scale)
        specs.append(VolumeSpec(shape, np.dtype(np.int16), geometry, f"mmsr-jax, {what}"))
    for path, spec in zip(outputs, specs, strict=False):
        if path is not None:
            writers.check_size(path, spec)
    return specs


def _laid_out(
    stack: contextlib.ExitStack,
    outputs: Outputs,
    specs: Sequence[VolumeSpec],
    settings: Mapping[str, Any],
    reader: SliceReader,
    options: Options,
) -> tuple[UnfinishedOutput, Writers]:
    """The working folder and the writers in it; those of process 0 are laid out first."""
    process = jax.process_index()
    if process > 0:
        wait_for_all("the outputs are laid out")
    unfinished = stack.enter_context(unfinished_output(outputs.fine, settings, process=process))
    volumes = _writers(outputs, specs, unfinished.folder, reader.files[0], options.keep_patient)
    if process == 0:
        for writer in filter(None, volumes):
            writer.create()
        wait_for_all("the outputs are laid out")
    wait_for_all("every process knows what an earlier run has done")
    return unfinished, volumes


def _writers(
    outputs: Outputs, specs: Sequence[VolumeSpec], folder: Path, scan: Path, keep_patient: bool
) -> Writers:
    source = scan if is_dicom(scan) else None

    def writer(name: str, path: Path, spec: VolumeSpec) -> SliceWriter:
        own = folder / name
        own.mkdir(exist_ok=True)
        return writers.open_writer(path, own, spec, source=source, keep_patient=keep_patient)

    fine, disagreement, deviation = specs
    return Writers(
        writer("fine", outputs.fine, fine),
        writer("disagreement", outputs.disagreement, disagreement),
        None if outputs.deviation is None else writer("deviation", outputs.deviation, deviation),
    )


def _run(work: SliceWork, unfinished: UnfinishedOutput, progress: bool) -> dict[str, float]:
    """Super-resolve the slices that are missing; seconds of each stage."""
    done = unfinished.done()
    missing = share([index for index in work.box.slices if index not in done])
    size = min(plan.slices for plan in work.ensemble.plans) * len(jax.local_devices())
    total = len(missing)
    with tqdm(total=total, unit="slice", disable=not progress, dynamic_ncols=True) as bar:

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
        )


def _publish(
    volumes: Writers, outputs: Outputs, unfinished: UnfinishedOutput, report: dict[str, Any]
) -> None:
    """Put everything under its name; the super-resolved volume last, as the sign of all."""
    saved = unfinished.folder / "report"
    scan_report.save(report, saved)
    payloads = [(saved, outputs.report), (volumes.disagreement.payload, outputs.disagreement)]
    if outputs.deviation is not None and volumes.deviation is not None:
        payloads.append((volumes.deviation.payload, outputs.deviation))
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
