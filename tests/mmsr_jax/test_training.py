"""The shipped demo, shrunk: from its command line to what lies in its run directory."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import SMALL, FinishedRun, last_error_line, run, small_demo
from matplotlib import image as pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import cyclegan
from data_pipelines import dataset_card
from data_pipelines.errors import UserError
from data_pipelines.volumes import read_volume
from mmsr_jax import methods, train
from mmsr_jax.checkpoints import load_meta, load_params
from mmsr_jax.config import Config
from mmsr_jax.speed import Speed
from mmsr_jax.train_state import create_train_state

STEPS, LOG_EVERY, VALIDATE_EVERY = (SMALL[k] for k in ("steps", "log_every", "validate_every"))
LOSSES = {
    f"{term}_{domain}"
    for term in ("adversarial", "cycle", "structure", "intensity", "discriminator")
    for domain in ("clinical", "micro")
}
TRAIN_TERMS = LOSSES | {"generator_loss", "correlation", "contrast"}
VALIDATION_TERMS = {"correlation", "contrast", "consistency_psnr", "spectrum_distance", "score"}


def logged(workdir: Path, group: str) -> dict[int, dict[str, float]]:
    """Values of a group by step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.pop("group") == group]
    values = {line.pop("step"): line for line in found}
    assert len(values) == len(found)
    return values


def table(output: str) -> list[str]:
    """The rows of the table of held-out scans."""
    section = output.partition("Held-out scans against their truth")[2].partition("\n\n")[0]
    return section.splitlines()[3:]


def test_the_start_says_what_is_trained(finished: FinishedRun) -> None:
    output = finished.result.stdout
    assert "1 device(s) (cpu" in output
    for network in ("clinical_to_micro", "micro_to_clinical", "clinical", "micro"):
        assert re.search(rf"parameters of .*\b{network} [\d,]+", output)
    assert f"training for {STEPS} steps of {SMALL['batch_size']} patch pair(s)" in output
    assert re.search(rf"ms a step: all {STEPS} steps take about \d+:\d\d:\d\d", output)


def test_the_progress_bar_shows_losses(finished: FinishedRun) -> None:
    assert f"{STEPS}/{STEPS}" in finished.result.stderr
    assert re.search(r"generator_loss=\d", finished.result.stderr)
    assert "Warning" not in finished.result.stderr
    assert "CheckpointManager" not in finished.result.stderr


def test_the_end_is_a_table_and_the_paths(finished: FinishedRun) -> None:
    output = finished.result.stdout
    rows = table(output)
    assert [row.split()[0] for row in rows] == ["nearest", "bicubic", "SR", "truth"]
    evaluation = json.loads((finished.workdir / "evaluation.json").read_text())
    sections = {section["title"]: section["methods"] for section in evaluation["sections"]}
    assert all(title in output for title in sections)
    scores = sections["Held-out scans against their truth"]
    for row, (name, slices) in zip(rows, scores.items(), strict=True):
        assert row.split()[0] == name
        assert len(slices) == SMALL["data.phantom.slices"] * SMALL["data.phantom.held_out_cases"]
        assert {"psnr", "ssim", "consistency_psnr"} <= slices[0].keys()
        if name != "truth":
            assert float(row.split()[1]) == pytest.approx(slices[0]["psnr"], abs=1e-3)
    for name in (
        "checkpoints",
        "comparison.png",
        "evaluation.json",
        "report.html",
        "super_resolved.nii.gz",
    ):
        assert str(finished.workdir / name) in output
        assert (finished.workdir / name).exists()


def test_the_figure_shows_something(finished: FinishedRun) -> None:
    picture = pictures.imread(finished.workdir / "comparison.png")
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.05


def test_the_volume_lies_where_the_scan_lies(finished: FinishedRun) -> None:
    dataset = finished.workdir / "phantom_dataset"
    card = dataset_card.load(dataset)
    scan = read_volume(dataset / card.held_out[0].clinical)
    fine = read_volume(finished.workdir / "super_resolved.nii.gz")
    slices, rows, columns = scan.array.shape
    assert fine.array.shape == (slices, 8 * rows, 8 * columns)
    x, y, z = scan.geometry.spacing_mm
    np.testing.assert_allclose(fine.geometry.spacing_mm, (x / 8, y / 8, z), rtol=1e-6)
    # The outer corners of the first pixels coincide.
    np.testing.assert_allclose(
        fine.geometry.physical_point((-0.5, -0.5, 0)),
        scan.geometry.physical_point((-0.5, -0.5, 0)),
        atol=1e-4,
    )


def test_every_term_is_logged_at_every_interval(finished: FinishedRun) -> None:
    training = logged(finished.workdir, "train")
    assert list(training) == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    assert all(values.keys() == TRAIN_TERMS for values in training.values())
    validation = logged(finished.workdir, "validation")
    assert list(validation) == list(range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY))
    assert all(values.keys() == VALIDATION_TERMS for values in validation.values())
    everything = [*training.values(), *validation.values()]
    assert np.isfinite([list(values.values()) for values in training.values()]).all()
    assert all(np.isfinite(list(values.values())).all() for values in everything)
    assert all(-1 <= values["correlation"] <= 1 for values in everything)


def test_the_generators_loss_is_the_weighted_sum_of_its_terms(finished: FinishedRun) -> None:
    loss = json.loads((finished.workdir / "config.json").read_text())["loss"]
    for values in logged(finished.workdir, "train").values():
        expected = (
            values["adversarial_clinical"]
            + values["adversarial_micro"]
            + loss["cycle"] * (values["cycle_clinical"] + values["cycle_micro"])
            + loss["lambda_1"] * values["structure_clinical"]
            + loss["lambda_2"] * values["structure_micro"]
            + loss["lambda_3"] * values["intensity_clinical"]
            + loss["lambda_4"] * values["intensity_micro"]
        )
        assert values["generator_loss"] == pytest.approx(expected, rel=1e-5)


def test_tensorboard_has_the_scalars_and_the_panel(finished: FinishedRun) -> None:
    events = EventAccumulator(str(finished.workdir / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {
        *(f"train/{name}" for name in TRAIN_TERMS),
        *(f"validation/{name}" for name in VALIDATION_TERMS),
        "speed/patch_pairs_per_second",
        "speed/model_flops_utilization",
    }
    for step, values in logged(finished.workdir, "train").items():
        (event,) = [e for e in events.Scalars("train/generator_loss") if e.step == step]
        assert event.value == pytest.approx(values["generator_loss"])
    panels = events.Images("translations")
    assert [panel.step for panel in panels] == list(
        range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY)
    )
    micro_px = 8 * SMALL["data.clinical_patch_px"]
    assert panels[0].width == 7 * micro_px  # clinical, bicubic, SR, cycle; micro, fake, cycle
    assert panels[0].height == SMALL["data.validation_patches"] * micro_px


def test_the_last_two_checkpoints_and_the_best_are_kept(finished: FinishedRun) -> None:
    steps = {int(path.name) for path in (finished.workdir / "checkpoints").iterdir()}
    scores = {
        step: values["score"] for step, values in logged(finished.workdir, "validation").items()
    }
    best = min(scores, key=lambda step: scores[step])
    assert steps == {STEPS, STEPS - SMALL["checkpoint_every"], best}
    assert load_meta(finished.workdir, "last")[0] == STEPS
    assert load_meta(finished.workdir, "best")[0] == best


def test_the_same_command_again_trains_no_more(finished: FinishedRun, copied: Path) -> None:
    kept = ("metrics.jsonl", "config.json", "phantom_dataset", "checkpoints")

    def contents() -> dict[Path, tuple[int, bytes]]:
        files = [file for name in kept for file in (copied / name, *(copied / name).rglob("*"))]
        return {f: (f.stat().st_ino, f.read_bytes()) for f in files if f.is_file()}

    before = contents()
    again = run("mmsr_jax.main", *small_demo(copied))
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {STEPS} of {STEPS}" in again.stdout
    assert table(again.stdout) == table(finished.result.stdout)
    after = contents()
    before.pop(copied / "metrics.jsonl")  # written anew, with the same content
    assert {path: after[path] for path in before} == before
    original = finished.workdir / "metrics.jsonl"
    assert (copied / "metrics.jsonl").read_bytes() == original.read_bytes()


def test_the_default_preset_is_the_papers() -> None:
    config = cyclegan.get_config()
    assert config == cyclegan.get_config("paper")
    assert config.steps == 2_000_000  # 200 epochs of 10,000 patches
    assert config.batch_size == 1
    state = jax.eval_shape(partial(create_train_state, config, methods.create(config)))
    assert state.pools["clinical"].images.shape == (1, 50, 32, 32, 1)
    assert state.pools["micro"].images.shape == (1, 50, 256, 256, 1)
    assert state.metric_sums.keys() == TRAIN_TERMS


def test_a_non_finite_loss_stops_the_run(workdir: Path) -> None:
    flags = small_demo(workdir, optimizer__learning_rate=1e30, checkpoint_every=1)
    line = last_error_line(run("mmsr_jax.main", *flags))
    assert re.search(
        r"error: [\w, ]*generator_loss[\w, ]* became non-finite in steps 1 to 2;", line
    )
    assert "learning_rate" in line
    step, meta = load_meta(workdir)
    assert step == 1
    init = jax.eval_shape(methods.create(meta.typed_config()).init, jax.random.key(0))
    params = load_params(workdir, step, init)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


class _Log:
    """Keeps what would be shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.values: dict[str, float] = {}

    def scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        self.values = values

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        assert picture.dtype == np.uint8

    def message(self, text: str) -> None:
        self.shown.append(text)

    def speed(self, step: int, values: dict[str, float]) -> None:
        pass

    def advance(self, steps: int) -> None:
        pass


def run_of(config: Config, log: _Log, patches: dict[str, Any], translate: Any) -> train._Run:
    """A run that saves nothing."""
    speed, profile = Speed(config.batch_size, 1.0, 1.0), train._Profile(None)
    return train._Run(config, None, log, None, patches, translate, speed, profile)


def test_non_finite_parameters_are_never_saved() -> None:
    """Also when they come from the very step that is to be saved: its losses are still finite."""
    config = cyclegan.get_config("demo")
    config.checkpoint_every = 1
    network = {"kernel": jnp.array([1.0, jnp.nan])}
    state = train.TrainState(
        step=jnp.array(0),
        params={"generators": {"clinical_to_micro": network}, "discriminators": {}},
        opt_states={},
        pools={},
        key=jnp.zeros(2),
        metric_sums={"generator_loss": jnp.array(1.0)},
    )
    one = run_of(config, _Log(), {}, None)
    with pytest.raises(UserError, match=r"generators\.clinical_to_micro.* by step 1;"):
        one.steps(lambda state: (state, state.step), state, start=0)


def validation_of(sr_of_clinical: float, stop: bool, log: _Log) -> float:
    """Validate a network that multiplies the contrast of the scan."""
    config = cyclegan.get_config("demo")
    config.stop_on_collapse = stop
    rng = np.random.default_rng(0)
    patches = {
        "clinical": rng.uniform(-1, 1, (2, 12, 12, 1)).astype(np.float32),
        "micro": rng.uniform(-1, 1, (2, 96, 96, 1)).astype(np.float32),
    }

    def translate(params: object, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sr = sr_of_clinical * batch["clinical"].repeat(8, 1).repeat(8, 2)
        return {
            "sr": sr,
            "fake_clinical": batch["clinical"],
            "cycle_clinical": batch["clinical"],
            "cycle_micro": batch["micro"],
        }

    one = run_of(config, log, patches, translate)
    state = train.TrainState(*[{}] * 6)
    return one.validate(24, state)


@pytest.mark.parametrize(("contrast", "what"), [(0.01, "blank"), (-0.9, "inverted")])
def test_a_collapse_is_told_or_stops_the_run(contrast: float, what: str) -> None:
    log = _Log()
    score = validation_of(contrast, stop=False, log=log)
    assert np.isfinite(score)
    (warning,) = log.shown
    assert warning.startswith(f"WARNING: step 24: super-resolution is {what}")
    with pytest.raises(UserError, match=f"step 24: super-resolution is {what}") as stopped:
        validation_of(contrast, stop=True, log=_Log())
    assert "\n" not in str(stopped.value)


def test_no_collapse_no_word() -> None:
    log = _Log()
    validation_of(0.9, stop=True, log=log)
    assert not log.shown
    assert log.values["correlation"] == pytest.approx(1)
