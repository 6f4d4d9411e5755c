"""Several runs side by side: one table, one figure, one page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.output_folder import check_writable
from mmsr_jax.config import differing_fields
from mmsr_jax.evaluation.evaluate_run import (
    MODEL,
    NEAREST,
    Evaluation,
    Phantoms,
    evaluate,
    load,
    methods,
    save,
)
from mmsr_jax.evaluation.phantom_cases import phantom_cases
from mmsr_jax.evaluation.real_images import RealImage
from mmsr_jax.evaluation.sections import (
    TRUTH,
    UNRELATED,
    Cases,
    SuperResolve,
    super_resolve_phantom,
)
from mmsr_jax.inference.trained import TrainedModel, load_model
from mmsr_jax.report.page import Table, write_page
from mmsr_jax.report.pictures import (
    phantom_pictures,
    region_figure,
    regions_of_phantom,
    regions_of_scan,
    scan_pictures,
)
from mmsr_jax.report.run_report import dataset_of, run_curves
from mmsr_jax.report.tables import HEADINGS, cell, mean_and_deviation

_PICTURES = 2  # phantoms, and squares of scans
_PAGE = "report.html"
LEGEND = (
    "Rows of several seeds: mean ± deviation over seeds (deviation over cases); else mean ± "
    "deviation over cases."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    model: TrainedModel
    evaluation: Evaluation


Groups = dict[str, list[Run]]  # name of the configuration → its seeds


def open_runs(paths: Sequence[Path], dataset: Path | None) -> Groups:
    """The runs by the name of their configuration; one that was not evaluated yet is evaluated.

    Args:
      paths: run directories.
      dataset: for runs that are not evaluated yet; their own by default.

    Raises:
      UserError: a path is no run, the checkpoint that a run was evaluated with is gone, two runs of
        one name differ in more than the seed, or the runs have several scales or windows.
    """
    groups: Groups = {}
    for path in paths:
        run = _open_run(path, dataset)
        model = run.model
        for other in groups.setdefault(model.config.name, []):
            _check_alike(run, other)
        groups[model.config.name].append(run)
    every = [run for group in groups.values() for run in group]
    for run in every[1:]:
        for name in ("scale", "window_hu"):
            here, there = getattr(run.model, name), getattr(every[0].model, name)
            if here != there:
                raise UserError(
                    f"{run.path} has a {name} of {here}, {every[0].path} of {there}: they cannot "
                    "be compared"
                )
    return groups


def _open_run(path: Path, dataset: Path | None) -> Run:
    evaluation = load(path)
    if evaluation is None:
        model = load_model(path)
        sections, _ = evaluate(model, dataset or dataset_of(path, model.config))
        evaluation = Evaluation(model.config, model.step, model.window_hu, sections)
        save(evaluation, path)
        return Run(path, model, evaluation)
    for checkpoint in ("last", "best"):
        model = load_model(path, checkpoint)
        if model.step == evaluation.step:
            return Run(path, model, evaluation)
    raise UserError(
        f"{path} was evaluated at step {evaluation.step}, which is neither its last nor its best "
        f"checkpoint; evaluate it again: python -m mmsr_jax.evaluate --run={path}"
    )


def _check_alike(run: Run, other: Run) -> None:
    configs = [
        dataclasses.replace(
            one.model.config,
            data=dataclasses.replace(one.model.config.data, directory=""),
        )
        for one in (run, other)
    ]
    differing = [line.partition(":")[0] for line in differing_fields(*configs)]
    if differing != ["seed"]:
        what = f"differ in {', '.join(differing)}" if differing else "are of one seed"
        raise UserError(
            f"{run.path} and {other.path} are both named {run.model.config.name!r} but {what}; "
            "give --config.name when training variants"
        )


def compare(
    runs: Sequence[Path],
    output: Path,
    *,
    dataset: Path | None = None,
    clinical: Sequence[RealImage] = (),
) -> str:
    """Write the comparison of several runs into a directory.

    `comparison.md` and `comparison.json` with the tables, `comparison.png` (Fig. 2 and 3 of the
    paper: a bronchus, a tumour and a vessel by every method), `report.html`.

    Args:
      runs: run directories; those of one configuration name are its seeds.
      output: directory, made if it is missing.
      dataset: for runs that are not evaluated yet; their own by default.
      clinical: squares of real scans to show; the first two.

    Returns:
      The tables, and the paths of what was written.

    Raises:
      UserError: as `open_runs` and `merged_sections`, or `output` cannot be written.
    """
    check_writable(output / _PAGE)
    groups = open_runs(runs, dataset)
    sections = merged_sections(groups)
    shown = {name: group[0].model for name, group in groups.items()}
    model = next(iter(shown.values()))
    by_name = _shown_methods(shown)
    phantoms = _phantoms(by_name, model)
    pictures = phantom_pictures(phantoms, _PICTURES)
    regions = [region for one in pictures for region in regions_of_phantom(one)]
    clinical = clinical[:_PICTURES]
    of_scans = scan_pictures(by_name, clinical, model.scale)
    for picture, scan in zip(of_scans, clinical, strict=True):
        regions += regions_of_scan(picture, scan, model.scale)
    tables = [_table(title, note, rows) for title, note, rows in sections]
    text = "\n\n".join(map(_markdown, tables))
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.md").write_text(f"{text}\n\n{LEGEND}\n", encoding="utf-8")
    values = {title: {name: _values(rows[name]) for name in rows} for title, _, rows in sections}
    (output / "comparison.json").write_text(json.dumps(values, indent=1) + "\n")
    region_figure(regions).savefig(output / "comparison.png")
    configs = {name: dataclasses.asdict(group[0].model.config) for name, group in groups.items()}
    write_page(
        output / _PAGE,
        title=f"Comparison of {', '.join(groups)}",
        window_hu=model.window_hu,
        pictures=[*pictures, *of_scans],
        regions=regions,
        curves=run_curves(
            {
                f"{name}, seed {run.model.config.seed}": run.path
                for name, group in groups.items()
                for run in group
            }
        ),
        tables=tables,
        config=json.dumps(configs, indent=2),
    )
    names = ("comparison.md", "comparison.json", "comparison.png", _PAGE)
    return "\n".join([text, "", LEGEND, *(str(output / name) for name in names)])


# Title, note, and for every method the cases of each of its seeds.
MergedSection = tuple[str, str, dict[str, list[Cases]]]


def merged_sections(groups: Groups) -> list[MergedSection]:
    """Every section of the runs' evaluations with a row for each rival, group, and the truth.

    Raises:
      UserError: runs were evaluated on different images: their rows of nearest interpolation, which
        knows no training, differ.
    """
    merged: dict[str, MergedSection] = {}
    for name, group in groups.items():
        for run in group:
            for section in run.evaluation.sections:
                _, _, rows = merged.setdefault(section.title, (section.title, section.note, {}))
                if NEAREST in rows and not _equal(rows[NEAREST][0], section.methods[NEAREST]):
                    raise UserError(
                        f"{run.path} was evaluated on other images than the runs before it "
                        f"({section.title}); evaluate all with the same flags of mmsr_jax.evaluate"
                    )
                for method, cases in section.methods.items():
                    if method == MODEL:
                        rows.setdefault(name, []).append(cases)
                    else:
                        rows.setdefault(method, [cases])
    last = (UNRELATED, TRUTH)
    return [
        (title, note, {key: rows[key] for key in sorted(rows, key=last.__contains__)})
        for title, note, rows in merged.values()
    ]


def _equal(cases: Cases, others: Cases) -> bool:
    if [list(case) for case in cases] != [list(case) for case in others]:
        return False
    here, there = ([value for case in of for value in case.values()] for of in (cases, others))
    return np.allclose(here, there, rtol=1e-3, equal_nan=True)


def _shown_methods(models: dict[str, TrainedModel]) -> dict[str, SuperResolve]:
    first = next(iter(models.values()))
    rivals = {name: method for name, method in methods(first).items() if name != MODEL}
    return rivals | {name: model.normalised for name, model in models.items()}


def _phantoms(by_name: dict[str, SuperResolve], model: TrainedModel) -> Phantoms:
    cases = phantom_cases(_PICTURES, window_hu=model.window_hu, scale=model.scale)
    return Phantoms(
        cases,
        {
            name: [super_resolve_phantom(method, case) for case in cases]
            for name, method in by_name.items()
        },
    )


def _table(title: str, note: str, rows: dict[str, list[Cases]]) -> Table:
    present = {
        name for seeds in rows.values() for cases in seeds for case in cases for name in case
    }
    names = [name for name in HEADINGS if name in present]
    cells = {
        method: [_cell([_column(cases, name) for cases in seeds]) for name in names]
        for method, seeds in rows.items()
    }
    return Table(title, f"{note} {LEGEND}", [HEADINGS[name] for name in names], cells)


def _column(cases: Cases, name: str) -> list[float]:
    return [case[name] for case in cases if name in case]


def _cell(seeds: Sequence[Sequence[float]]) -> str:
    if len(seeds) == 1:
        return cell(seeds[0])
    means, over_cases = np.transpose([mean_and_deviation(values) for values in seeds])
    known = np.isfinite(means)
    text = cell(list(means))
    if np.isfinite(over_cases).any():
        text += f" ({np.nanmean(over_cases):.3f})"
    return (
        text if known.all() or not known.any() else f"{text}, {known.sum()} of {len(seeds)} seeds"
    )


def _values(seeds: list[Cases]) -> list[dict[str, float | None]]:
    """The mean over the cases of each seed; None where nothing is known."""
    means = []
    for cases in seeds:
        names = {name for case in cases for name in case}
        of_seed = {name: mean_and_deviation(_column(cases, name))[0] for name in HEADINGS
                   if name in names}  # fmt: skip
        means.append({name: None if np.isnan(v) else v for name, v in of_seed.items()})
    return means


def _markdown(table: Table) -> str:
    lines = [["", *table.columns], *([name, *cells] for name, cells in table.rows.items())]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    ruler = "|---" * len(lines[0]) + "|"
    return "\n".join([f"### {table.title}", "", table.caption, "", rows[0], ruler, *rows[1:]])
