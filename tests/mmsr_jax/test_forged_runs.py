"""Texts of a run directory that say what no run has written."""

import json
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from mmsr_jax.config import Config, check_config, config_from_dict
from mmsr_jax.evaluation import evaluate_run
from mmsr_jax.run_log import logged_scalars


def test_lines_that_were_never_logged_are_dropped(tmp_path: Path) -> None:
    lines = ['{"step": 1, "group": "train", "loss": 0.5}', "5", "[]", "{}", "[" * 100_000]
    lines += ['{"step": "1", "group": "train"}', '{"step": 1, "group": "$x", "loss": 0.5}']
    lines += ['{"step": 1, "group": "train", "loss": "0.5"}', '{"step": -1, "group": "train"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert logged_scalars(tmp_path) == {"train/loss": ([1], [0.5])}


@pytest.mark.parametrize("text", ["5", "[" * 100_000, '{"config": {}}', '{"step": NaN}', "\x00"])
def test_a_forged_evaluation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json is damaged .*; delete it") as caught:
        evaluate_run.load(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ['{"steps": "5"}', '{"networks": {"norm": "x"}}', '{"x": 1}', '{"data": 5}', "5"]
)
def test_a_configuration_of_other_types_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no configuration of this version"):
        config_from_dict(json.loads(text))


def test_networks_that_take_for_ever_to_trace_are_refused() -> None:
    config = Config()
    config.networks.sr_blocks = 10**9
    with pytest.raises(UserError, match=r"config\.networks\.sr_blocks=1000000000: .* at most 100"):
        check_config(config)
