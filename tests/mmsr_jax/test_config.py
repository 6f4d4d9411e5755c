import dataclasses
import json
from typing import Any

import pytest

from configs import cyclegan
from data_pipelines.errors import UserError
from mmsr_jax import methods
from mmsr_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    NetworksConfig,
    PhantomConfig,
    check_config,
    config_from_dict,
    differing_fields,
    field_names,
)

CONFIGS = [
    Config(),
    cyclegan.get_config("demo"),
    Config(
        name="other",
        seed=7,
        stop_on_collapse=True,
        data=DataConfig(directory="somewhere", phantom=PhantomConfig(cases=3)),
        networks=NetworksConfig(norm="instance"),
        loss=LossConfig(lambda_1=0.5),
    ),
]


def changed(**fields: Any) -> Config:
    """The default configuration with some dotted fields (`data__scale`) replaced."""
    config = Config()
    for path, value in fields.items():
        *parents, name = path.split("__")
        owner: Any = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_round_trip_through_json(config: Config) -> None:
    again = config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert isinstance(again.data.phantom, PhantomConfig)
    assert differing_fields(config, again) == []


def test_missing_fields_take_their_defaults() -> None:
    assert config_from_dict({}) == Config()
    assert config_from_dict({"data": {"scale": 4}}) == changed(data__scale=4)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"data": {"phantom": {"patients": 3}}}, "patients"),
        ({"loss": {"lambda_5": 3}}, "lambda_5"),
    ],
)
def test_unknown_fields_are_rejected(values: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is unknown"):
        config_from_dict(values)


def test_differing_fields_are_named_with_both_values() -> None:
    here = changed(seed=1, data__phantom__cases=5, loss__pixel_loss="l1")
    assert differing_fields(here, Config()) == [
        "seed: 1 now, 0 there",
        "data.phantom.cases: 5 now, 16 there",
        "loss.pixel_loss: 'l1' now, 'mse' there",
    ]


def test_field_names_are_the_leaves() -> None:
    names = field_names()
    assert len(names) == len(set(names))
    assert {"steps", "data.scale", "data.phantom.seed", "networks.norm", "loss.cycle"} <= set(names)
    assert "data" not in names
    assert "data.phantom" not in names


def test_configurations_do_not_share_their_parts() -> None:
    one, other = Config(), Config()
    one.data.phantom.cases = 99
    assert other.data.phantom.cases == 16


@pytest.mark.parametrize("preset", ["paper", "demo"])
def test_presets_are_usable(preset: str) -> None:
    check_config(cyclegan.get_config(preset))


def test_paper_preset_says_what_the_paper_says() -> None:
    config = cyclegan.get_config()
    loss, data = config.loss, config.data
    assert (loss.lambda_1, loss.lambda_2, loss.lambda_3, loss.lambda_4) == (2, 1, 1, 1)
    assert (loss.ssim_constants, loss.pixel_loss, loss.luminance_factor) == ("printed", "mse", 2)
    assert (data.scale, data.clinical_patch_px, config.batch_size) == (8, 32, 1)
    assert config.optimizer.learning_rate == 2e-4


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match=r"'huge' is unknown.*paper and demo"):
        cyclegan.get_config("huge")


def test_unknown_method() -> None:
    with pytest.raises(UserError, match=r"config\.method='gan'.*cyclegan"):
        methods.create(changed(method="gan"))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("compute_dtype", "float16", "float32, bfloat16"),
        ("networks__norm", "batch", "pixel, instance, none"),
        ("networks__upsample", "bilinear", "nearest, smooth, shuffle"),
        ("networks__base", "nearest", "none, bicubic, consistent"),
        ("loss__ssim_constants", "wang", "printed, squared"),
        ("loss__ssim_window", "uniform", "gaussian, global"),
        ("loss__pixel_loss", "huber", "mse, l1"),
    ],
)
def test_choices(field: str, value: str, allowed: str) -> None:
    name = field.replace("__", r"\.")
    with pytest.raises(UserError, match=rf"config\.{name}='{value}': must be one of {allowed}$"):
        check_config(changed(**{field: value}))
    for choice in allowed.split(", "):
        check_config(changed(**{field: choice}))


@pytest.mark.parametrize(
    ("field", "least"),
    [
        *((f"{what}_every", 1) for what in ("log", "validate", "checkpoint")),
        ("steps", 1),
        ("batch_size", 1),
        ("pool_size", 0),
        ("data__validation_patches", 1),
        ("networks__sr_blocks", 0),
        ("networks__down_channels", 1),
        ("networks__discriminator_max_channels", 1),
        ("optimizer__warmup_steps", 0),
    ],
)
def test_counts_have_a_least_value(field: str, least: int) -> None:
    name = field.replace("__", r"\.")
    with pytest.raises(UserError, match=rf"config\.{name}={least - 1}: must be at least {least}$"):
        check_config(changed(**{field: least - 1}))
    check_config(changed(**{field: least}))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_decay_takes_a_share_of_the_steps(value: float) -> None:
    with pytest.raises(
        UserError, match=rf"config\.optimizer\.decay_fraction={value}: must be from 0 to 1$"
    ):
        check_config(changed(optimizer__decay_fraction=value))


@pytest.mark.parametrize("scale", [0, 1, 3, 6, -2])
def test_scale_is_a_power_of_two(scale: int) -> None:
    with pytest.raises(UserError, match=rf"config\.data\.scale={scale}: must be a power of two"):
        check_config(changed(data__scale=scale))


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_powers_of_two(scale: int) -> None:
    check_config(changed(data__scale=scale))


@pytest.mark.parametrize("window", ["gaussian", "global"])
def test_patches_must_give_the_discriminators_a_score(window: str) -> None:
    with pytest.raises(UserError, match=r"config\.data\.clinical_patch_px=11: .*at least 12"):
        check_config(changed(data__clinical_patch_px=11, loss__ssim_window=window))
    check_config(changed(data__clinical_patch_px=12, loss__ssim_window=window))
