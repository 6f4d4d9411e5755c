"""What a user can do wrong when training: one line each, and nothing left behind."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import DEMO, REPOSITORY, SMALL, FinishedRun, error_line, run, small_config, small_demo

from configs import cyclegan
from data_pipelines.dataset_card import CARD_NAME
from data_pipelines.errors import UserError
from mmsr_jax.config import Config, field_names
from mmsr_jax.train import train


def refuses(config: Config, workdir: Path, *parts: object) -> str:
    """Training gives one line with all the parts."""
    with pytest.raises(UserError) as caught:
        train(config, workdir)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def error(*flags: object) -> str:
    return error_line(run("mmsr_jax.main", *flags))


def a_shard(dataset: Path, domain: str, split: str) -> Path:
    shards = (dataset / "ct_patches" / domain).rglob(f"*-{split}.tfrecord-*")
    return next(shard for shard in sorted(shards) if shard.stat().st_size)


# ---- the command line -------------------------------------------------------------------------


def test_an_unknown_field_lists_the_fields() -> None:
    for flag, unknown in (("--config.stepz=3", "stepz"), ("--config.data.size=3", "size")):
        line = error(DEMO, flag)
        assert unknown in line
        assert line.endswith(", ".join(field_names()))


def test_every_field_can_be_overridden() -> None:
    leaves = flat(dataclasses.asdict(Config()))
    assert set(leaves) == set(field_names())
    flags = [f"--config.{name}={value}" for name, value in leaves.items() if value != ""]
    program = (
        "import dataclasses, json, sys; from absl import flags; from mmsr_jax import main; "
        "main.parse_flags(sys.argv); print(json.dumps(dataclasses.asdict(main._CONFIG.value)))"
    )
    command = [sys.executable, "-c", program, DEMO, *flags, "--config.data.directory=there"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert flat(json.loads(result.stdout)) == leaves | {"data.directory": "there"}


def flat(values: dict) -> dict:
    leaves = {}
    for name, value in values.items():
        inner = flat(value) if isinstance(value, dict) else {}
        leaves |= {f"{name}.{key}": leaf for key, leaf in inner.items()} or {name: value}
    return leaves


def test_a_field_may_be_written_with_dashes() -> None:
    line = error(DEMO, "--config.batch-size=2", "--config.loss.pixel-loss=huber")
    assert "config.loss.pixel_loss='huber': must be one of mse, l1" in line


def test_values_that_are_none() -> None:
    assert "--config.steps=many" in error(DEMO, "--config.steps=many")
    assert "--config.stop_on_collapse=perhaps" in error(DEMO, "--config.stop_on_collapse=perhaps")


def test_configurations_that_are_none() -> None:
    assert "--config is missing; try --config=configs/" in error()
    assert "configs/none.py cannot be read" in error("--config=configs/none.py")
    line = error("--config=configs/cyclegan.py:fast")
    assert "'fast'" in line
    assert "paper" in line
    assert "demo" in line


def test_other_arguments_that_mean_nothing() -> None:
    assert "'step'" in error(DEMO, "--step=3")
    assert "'--config.steps'" in error(DEMO, "--", "--config.steps")


def test_a_run_directory_of_another_configuration(finished: FinishedRun) -> None:
    before = sorted(finished.workdir.rglob("*"))
    line = error(*small_demo(finished.workdir, seed=5, loss__cycle=3))
    assert str(finished.workdir) in line
    there = cyclegan.get_config("demo").loss.cycle
    assert f"seed: 5 now, 0 there; loss.cycle: 3.0 now, {there} there" in line
    assert "--workdir" in line
    assert "pool_size" not in line
    assert sorted(finished.workdir.rglob("*")) == before


def test_a_truncated_shard(finished: FinishedRun, workdir: Path) -> None:
    shard = a_shard(workdir / "phantom_dataset", "micro", "train")
    shard.write_bytes(shard.read_bytes()[:-10])
    line = error(*small_demo(workdir))
    assert str(shard) in line
    assert "prepare the dataset again" in line
    assert not (workdir / "config.json").exists()


# ---- the same in this process -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"method": "magic"}, ["config.method='magic'", "cyclegan"]),
        ({"steps": 0}, ["config.steps=0", "at least 1"]),
        ({"data__scale": 6}, ["config.data.scale=6", "power of two"]),
        ({"data__directory": "nowhere"}, ["nowhere", CARD_NAME, "data_pipelines.prepare"]),
        ({"data__phantom__patches_per_volume": 1000}, ["of 1000 patches", "ask for fewer"]),
        ({"data__phantom__size_px": 132}, ["config.data.phantom.size_px=132", "multiple of 8"]),
        ({"data__phantom__cases": 0}, ["config.data.phantom.cases=0", "at least 1"]),
        ({"optimizer__learning_rate": float("nan")}, ["learning_rate=nan", "from 0 to inf"]),
        ({"seed": -1}, ["config.seed=-1", "at least 0"]),
    ],
)
def test_configurations_no_run_can_use(
    changes: dict[str, object], parts: list[str], tmp_path: Path
) -> None:
    refuses(small_config(**changes), tmp_path / "new" / "run", *parts)
    assert not (tmp_path / "new" / "run").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("{ damaged", "malformed"),
        ("[]", "`array`"),
        ('{"data": 3}', "3"),
        ('{"steps": {"a": 1}}', "$.steps"),
        ('{"foo": 1}', "'foo' is unknown"),
    ],
)
def test_a_damaged_configuration(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    refuses(small_config(), tmp_path, tmp_path / "config.json", "damaged", reason, "--workdir")
    assert (tmp_path / "config.json").read_text() == text


def without_card(dataset: Path) -> str:
    (dataset / CARD_NAME).unlink()
    return CARD_NAME


def with_half_a_card(dataset: Path) -> str:
    text = (dataset / CARD_NAME).read_text()
    (dataset / CARD_NAME).write_text(text[: len(text) // 2])
    return CARD_NAME


def with_a_list_of_shards(dataset: Path) -> str:
    card = json.loads((dataset / CARD_NAME).read_text())
    card["micro"]["shards"] = []
    (dataset / CARD_NAME).write_text(json.dumps(card))
    return CARD_NAME


def with_the_card_of_another_version(dataset: Path) -> str:
    card = json.loads((dataset / CARD_NAME).read_text())
    (dataset / CARD_NAME).write_text(json.dumps(card | {"format_version": 99}))
    return "format 99"


def without_a_shard(dataset: Path) -> str:
    shard = a_shard(dataset, "clinical", "validation")
    shard.unlink()
    return str(shard)


def with_a_shard_of_rubbish(dataset: Path) -> str:
    shard = a_shard(dataset, "clinical", "validation")
    shard.write_bytes(b"?" * shard.stat().st_size)
    return "damaged clinical record"


@pytest.mark.parametrize(
    "damage",
    [
        without_card,
        with_half_a_card,
        with_a_list_of_shards,
        with_the_card_of_another_version,
        without_a_shard,
        with_a_shard_of_rubbish,
    ],
)
def test_damaged_datasets(
    damage: Callable[[Path], str], finished: FinishedRun, tmp_path: Path
) -> None:
    dataset = shutil.copytree(finished.workdir / "phantom_dataset", tmp_path / "dataset")
    problem = damage(dataset)
    config = small_config(data__directory=str(dataset))
    refuses(config, tmp_path / "run", problem, dataset, "prepare")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__scale": 4}, ["config.data.scale=4", "with 8"]),
        ({"data__clinical_patch_px": 16}, ["config.data.clinical_patch_px=16", "with 12"]),
        ({"batch_size": 25}, ["batch size 25", "24 clinical training patches"]),
    ],
)
def test_datasets_of_another_size(
    changes: dict[str, object], parts: list[str], finished: FinishedRun, tmp_path: Path
) -> None:
    dataset = finished.workdir / "phantom_dataset"
    config = small_config(data__directory=str(dataset), **changes)
    refuses(config, tmp_path / "run", dataset, *parts)
    assert not (tmp_path / "run").exists()


def test_a_failed_start_keeps_what_was_there_before(workdir: Path) -> None:
    (workdir / "note.txt").write_text("mine")
    refuses(small_config(batch_size=25), workdir, "batch size 25")
    assert sorted(path.name for path in workdir.iterdir()) == ["note.txt", "phantom_dataset"]


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuses(
        small_config(), tmp_path / "file" / "run", tmp_path / "file" / "run", "cannot be written"
    )


def test_a_checkpoint_that_does_not_fit_stops_a_resumed_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["networks"]["sr_channels"] = 6
    (copied / "config.json").write_text(json.dumps(config))
    message = refuses(
        small_config(networks__sr_channels=6), copied, copied, f"checkpoint {SMALL['steps']}"
    )
    assert "another architecture" in message
    assert (copied / "config.json").exists()
