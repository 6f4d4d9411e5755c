"""The command lines that measure and compare finished runs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from chest import body
from commands import SMALL, FinishedRun, error_line, run, small_demo
from matplotlib import image as pictures

from data_pipelines.geometry import Geometry, Volume
from data_pipelines.phantom import LungPhantom, scan_micro
from data_pipelines.volumes import read_volume, write_volume
from mmsr_jax.config import config_from_dict
from mmsr_jax.evaluation.evaluate_run import load

TITLES = [
    "Phantoms against their truth",
    "Airways of the phantoms",
    "Hallucination on the phantoms",
    "Held-out scans against their truth",
    "Realism on validation patches",
]


@pytest.fixture(scope="module")
def micro_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Micro slices in units of their own: air at 40, tissue at 180."""
    hu = [scan_micro(LungPhantom(5, 256).slice_hu(z), np.random.default_rng(0)) for z in (2.0, 5.0)]
    stored = np.clip(40 + (np.stack(hu) + 1000) / 1040 * 140, 0, 255).astype(np.uint16)
    path = tmp_path_factory.mktemp("micro") / "lung.nii.gz"
    write_volume(Volume(stored, Geometry((0.078, 0.078, 1.0))), path)
    return path


def evaluation(workdir: Path) -> dict[str, dict]:
    text = (workdir / "evaluation.json").read_text()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return {section["title"]: section["methods"] for section in values["sections"]}


def test_a_run_ends_with_its_evaluation(finished: FinishedRun) -> None:
    sections = evaluation(finished.workdir)
    assert list(sections) == TITLES
    for methods in sections.values():
        assert {"nearest", "bicubic", "SR", "truth"} <= set(methods)
    truth = sections["Phantoms against their truth"]["truth"][0]
    assert truth["psnr"] is None  # infinite
    assert truth["ssim"] == 1
    values = json.loads((finished.workdir / "evaluation.json").read_text())
    assert values["data_range"] == 2
    assert values["window_hu"] == [-1000, 400]
    assert values["step"] == SMALL["steps"]
    assert config_from_dict(values["config"]).steps == SMALL["steps"]
    page = (finished.workdir / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in TITLES)
    assert "generator_loss" in page


def test_evaluating_again_gives_the_same_and_adds_real_images(
    copied: Path, micro_volume: Path
) -> None:
    before = evaluation(copied)
    result = run("mmsr_jax.evaluate", f"--run={copied}", "--phantoms=1", f"--micro={micro_volume}")
    assert result.returncode == 0, result.stderr
    after = evaluation(copied)
    title = f"Real micro images {micro_volume.name}, degraded 8×"
    assert list(after) == [*TITLES, title]
    assert {name: after[name] for name in TITLES} == before
    assert len(after[title]["SR"]) == 2
    assert after[title]["bicubic"][0]["psnr"] > 15
    for name in (title, "comparison.png", "evaluation.json", "report.html"):
        assert name in result.stdout


def test_what_was_saved_is_read(finished: FinishedRun, tmp_path: Path) -> None:
    loaded = load(finished.workdir)
    assert loaded is not None
    assert [section.title for section in loaded.sections] == TITLES
    assert math.isnan(loaded.sections[0].methods["truth"][0]["psnr"])
    assert load(tmp_path) is None


@pytest.fixture
def trained_again(finished: FinishedRun, tmp_path: Path) -> Path:
    """The same run with another seed and hardly any steps."""
    workdir = tmp_path / "again"
    dataset = finished.workdir / "phantom_dataset"
    changes = {"steps": 3, "seed": 1, "data.directory": dataset}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    result = run("mmsr_jax.main", *small_demo(workdir), *flags)
    assert result.returncode == 0, result.stderr
    return workdir


def test_runs_are_compared(finished: FinishedRun, trained_again: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    runs = f"--runs={finished.workdir},{trained_again}"
    line = error_line(run("mmsr_jax.compare", runs, f"--output={output}"))
    assert "both named 'cyclegan_demo' but differ in seed, steps; give" in line
    assert "--config.name" in line
    assert not output.exists()


def second_seed(finished: FinishedRun, path: Path, **of_config) -> Path:
    """The run as another seed, made by changing what its checkpoint says of itself."""
    other = shutil.copytree(finished.workdir, path)
    for meta_path in (other / "checkpoints").glob("*/meta/metadata"):
        meta = json.loads(meta_path.read_text())
        meta["config"].update({"seed": meta["config"]["seed"] + 1, **of_config})
        meta["fingerprints"] = {}  # as of a state without them, which cannot see the change
        meta_path.write_text(json.dumps(meta))
    return other


def test_two_configurations_are_two_rows_and_evaluations_stay(
    finished: FinishedRun, micro_volume: Path, tmp_path: Path
) -> None:
    first = shutil.copytree(finished.workdir, tmp_path / "first")
    flags = ["--phantoms=1", f"--micro={micro_volume}"]
    assert run("mmsr_jax.evaluate", f"--run={first}", *flags).returncode == 0
    before = (first / "evaluation.json").read_bytes()
    other = second_seed(finished, tmp_path / "other", name="variant")
    output = tmp_path / "comparison"
    result = run("mmsr_jax.compare", f"--runs={first},{other}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    assert (first / "evaluation.json").read_bytes() == before
    tables = json.loads((output / "comparison.json").read_text())
    assert list(tables) == [*TITLES, f"Real micro images {micro_volume.name}, degraded 8×"]
    assert list(tables[TITLES[0]]) == ["nearest", "bicubic", "cyclegan_demo", "variant", "truth"]


def test_evaluations_of_different_images_are_not_compared(
    finished: FinishedRun, tmp_path: Path
) -> None:
    other = second_seed(finished, tmp_path / "other")
    assert run("mmsr_jax.evaluate", f"--run={other}", "--phantoms=2").returncode == 0
    flags = [f"--runs={finished.workdir},{other}", f"--output={tmp_path / 'comparison'}"]
    line = error_line(run("mmsr_jax.compare", *flags))
    assert f"{other} was evaluated on other images" in line
    assert "evaluate all with the same flags" in line
    assert not (tmp_path / "comparison").exists()


def test_a_scan_is_measured_and_shown(copied: Path, tmp_path: Path) -> None:
    scan = tmp_path / "chest.nii.gz"
    spacing_mm = (2.0, 2.0, 25.0)
    write_volume(Volume(body(spacing_mm)[0].astype(np.int16), Geometry(spacing_mm)), scan)
    flags = ["--phantoms=1", f"--clinical={scan}"]
    result = run("mmsr_jax.evaluate", f"--run={copied}", *flags)
    assert result.returncode == 0, result.stderr
    rows = evaluation(copied)["Consistency on clinical scans"]
    assert len(rows["SR"]) == 4
    assert all(case["correlation"] > 0.9 for case in rows["bicubic"])
    assert all(case["consistency_mae_hu"] < 1 for case in rows["nearest"])
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "chest.nii.gz, slice" in page


def test_two_seeds_are_one_row(finished: FinishedRun, tmp_path: Path) -> None:
    other = second_seed(finished, tmp_path / "other")
    values = json.loads((other / "evaluation.json").read_text())
    for section in values["sections"]:
        for case in section["methods"]["SR"]:
            case.update({name: v + 2 for name, v in case.items() if v is not None})
    (other / "evaluation.json").write_text(json.dumps(values))

    output = tmp_path / "comparison"
    result = run("mmsr_jax.compare", f"--runs={finished.workdir},{other}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    means = json.loads((output / "comparison.json").read_text())
    rows = means["Held-out scans against their truth"]
    assert list(rows) == ["nearest", "bicubic", "cyclegan_demo", "truth"]
    first, second = rows["cyclegan_demo"]
    assert second["psnr"] == pytest.approx(first["psnr"] + 2)
    table = (output / "comparison.md").read_text(encoding="utf-8")
    assert f"| cyclegan_demo | {first['psnr'] + 1:.3f} ± {2**0.5:.3f}" in table
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "cyclegan_demo, seed 1" in page
    figure = pictures.imread(output / "comparison.png")
    assert figure[..., :3].std() > 0.05


def test_images_with_bright_air_are_inverted(
    copied: Path, micro_volume: Path, tmp_path: Path
) -> None:
    volume, inverted = read_volume(micro_volume), tmp_path / "inverted.nii.gz"
    write_volume(Volume(500 - volume.array, volume.geometry), inverted)
    flags = [f"--micro={micro_volume}", f"--micro-inverted={inverted}"]
    result = run("mmsr_jax.evaluate", f"--run={copied}", "--phantoms=1", *flags)
    assert result.returncode == 0, result.stderr
    plain, again = (
        evaluation(copied)[f"Real micro images {path.name}, degraded 8×"]["bicubic"]
        for path in (micro_volume, inverted)
    )
    assert [case["psnr"] for case in again] == pytest.approx([case["psnr"] for case in plain])


# ---- what a user can do wrong -----------------------------------------------------------------


def test_no_run(tmp_path: Path) -> None:
    for module, flag in (("evaluate", "--run"), ("compare", "--runs")):
        flags = [f"{flag}={tmp_path}", *([f"--output={tmp_path}/o"] if module == "compare" else [])]
        assert f"{tmp_path} is no run directory" in error_line(run(f"mmsr_jax.{module}", *flags))


def test_no_dataset(copied: Path) -> None:
    shutil.rmtree(copied / "phantom_dataset")
    line = error_line(run("mmsr_jax.evaluate", f"--run={copied}"))
    assert f"{copied / 'phantom_dataset'}, which {copied} was trained with, is missing" in line
    assert "--data" in line


def test_a_damaged_evaluation(copied: Path, tmp_path: Path) -> None:
    (copied / "evaluation.json").write_text('{"sections": 3}')
    line = error_line(run("mmsr_jax.compare", f"--runs={copied}", f"--output={tmp_path}/o"))
    assert "evaluation.json is damaged" in line
    assert "evaluate again" in line


def test_two_sets_of_one_name(copied: Path, micro_volume: Path) -> None:
    flags = [f"--micro={micro_volume}", f"--micro-inverted={micro_volume}"]
    line = error_line(run("mmsr_jax.evaluate", f"--run={copied}", *flags))
    assert "two sets of micro images have one name" in line


def test_an_output_that_is_a_file(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    flags = [f"--runs={copied}", f"--output={tmp_path / 'taken'}"]
    assert f"{tmp_path / 'taken'} is no folder" in error_line(run("mmsr_jax.compare", *flags))


def test_the_evaluated_checkpoint_is_gone(copied: Path, tmp_path: Path) -> None:
    values = json.loads((copied / "evaluation.json").read_text()) | {"step": 999}
    (copied / "evaluation.json").write_text(json.dumps(values))
    flags = [f"--runs={copied}", f"--output={tmp_path}/o"]
    line = error_line(run("mmsr_jax.compare", *flags))
    assert f"{copied} was evaluated at step 999" in line
    assert "evaluate it again" in line


@pytest.mark.parametrize("flag", ["--clinical", "--micro"])
def test_no_images(copied: Path, tmp_path: Path, flag: str) -> None:
    line = error_line(run("mmsr_jax.evaluate", f"--run={copied}", f"{flag}={tmp_path}/none*"))
    assert f"{tmp_path}/none* matches no file or folder" in line
