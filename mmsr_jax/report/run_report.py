"""The end of a run: evaluated, and shown on a page of its own."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines import dataset_card, volumes
from data_pipelines.errors import UserError
from data_pipelines.output_folder import check_writable
from mmsr_jax.config import Config
from mmsr_jax.evaluation.evaluate_run import PHANTOMS, Evaluation, evaluate, methods, save
from mmsr_jax.evaluation.real_images import RealImage
from mmsr_jax.evaluation.sections import Section
from mmsr_jax.inference.trained import TrainedModel
from mmsr_jax.report.page import Curves, Table, write_page
from mmsr_jax.report.pictures import (
    phantom_pictures,
    region_figure,
    regions_of_phantom,
    regions_of_scan,
    scan_pictures,
)
from mmsr_jax.report.tables import HEADINGS, LEGEND, columns, rows, text_table
from mmsr_jax.run_log import logged_scalars

_PICTURES = 2
_REGION_ROWS = 2  # pictures whose regions are shown


def report_run(
    run: Path,
    model: TrainedModel,
    *,
    dataset: Path | None = None,
    clinical: Sequence[RealImage] = (),
    micro: Mapping[str, Sequence[RealImage]] | None = None,
    phantoms: int = PHANTOMS,
) -> str:
    """Evaluate a run's model; write `evaluation.json`, `comparison.png` and `report.html`.

    Args:
      run: its directory.
      model: of one of its checkpoints.
      dataset: to evaluate on; the run's own by default.
      clinical: squares of real scans.
      micro: real micro images, a name for each set of them.
      phantoms: how many.

    Returns:
      The tables, and the paths of what was written.

    Raises:
      UserError: there is no dataset, or of another scale, or `run` cannot be written.
    """
    config = model.config
    figure, page = run / "comparison.png", run / "report.html"
    check_writable(page)
    dataset = dataset or dataset_of(run, config)
    sections, shown = evaluate(model, dataset, clinical=clinical, micro=micro, phantoms=phantoms)
    evaluation = Evaluation(config, model.step, model.window_hu, sections)
    saved = save(evaluation, run)
    pictures = phantom_pictures(shown, _PICTURES)
    regions = [region for one in pictures for region in regions_of_phantom(one)]
    of_scans = scan_pictures(methods(model), clinical[:_REGION_ROWS], model.scale)
    for picture, scan in zip(of_scans, clinical, strict=False):
        regions += regions_of_scan(picture, scan, model.scale)
    region_figure(regions).savefig(figure)
    write_page(
        page,
        title=f"{config.name}, seed {config.seed}, step {model.step:,}",
        window_hu=model.window_hu,
        pictures=[*pictures, *of_scans],
        regions=regions,
        curves=run_curves({config.name: run}),
        tables=[page_table(section) for section in sections],
        config=json.dumps(dataclasses.asdict(config), indent=2),
    )
    tables = "\n\n".join(map(text_table, sections))
    paths = "\n".join(f"{what}: {path}" for what, path in
                      (("figure", figure), ("values", saved), ("page", page)))  # fmt: skip
    return f"{tables}\n{LEGEND}\n\n{paths}"


def dataset_of(run: Path, config: Config) -> Path:
    """The dataset that a run was trained with.

    Raises:
      UserError: it is not there any more.
    """
    dataset = Path(config.data.directory or run / "phantom_dataset")
    if not dataset.exists():
        raise UserError(f"{dataset}, which {run} was trained with, is missing; give --data=DATASET")
    return dataset


def page_table(section: Section) -> Table:
    """A section for a page."""
    headings = [HEADINGS[name] for name in columns(section)]
    return Table(section.title, f"{section.note} {LEGEND}", headings, rows(section))


def run_curves(runs: dict[str, Path]) -> list[Curves]:
    """A panel for every logged scalar, with a curve for each run that has it."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, run in runs.items():
        for scalar, curve in logged_scalars(run).items():
            panels.setdefault(scalar, {})[name] = curve
    return [Curves(scalar, series) for scalar, series in panels.items()]


def super_resolve_held_out(run: Path, model: TrainedModel, dataset: Path) -> Path | None:
    """The first held-out scan of a dataset as a super-resolved volume, if there is one."""
    card = dataset_card.load(dataset)
    if not card.held_out:
        return None
    output = run / "super_resolved.nii.gz"
    clinical = volumes.read_volume(dataset / card.held_out[0].clinical)
    volumes.write_volume(model.volume(clinical), output, overwrite=True)
    return output
