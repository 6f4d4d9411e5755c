import dataclasses
import json
import math
from types import ModuleType
from typing import Any

import jax
import pytest

from configs import (
    cyclegan,
    cyclegan_original,
    cyclegan_without_mmsr,
    unit,
    unit_original,
    unit_without_mmsr,
)
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


PAPER = {  # λ1, λ2, λ3, λ4; cycle, identity, reconstruction, KL; learning rate, L2; pool
    cyclegan: ((2, 1, 1, 1), (10, 0, 10, 0.01), (2e-4, 0), 50),
    cyclegan_without_mmsr: ((0, 0, 0, 0), (10, 0, 10, 0.01), (2e-4, 0), 50),
    cyclegan_original: ((0, 0, 0, 0), (10, 5, 10, 0.01), (2e-4, 0), 50),
    unit: ((2, 1, 1, 1), (10, 0, 10, 0.01), (1e-4, 1e-4), 0),
    unit_without_mmsr: ((0, 0, 0, 0), (10, 0, 10, 0.01), (1e-4, 1e-4), 0),
    unit_original: ((0, 0, 0, 0), (10, 0, 10, 0.01), (1e-4, 1e-4), 0),
}
every_config = pytest.mark.parametrize("module", PAPER, ids=lambda module: module.__name__)


@every_config
def test_weights_of_the_paper_presets(module: ModuleType) -> None:
    mmsr, others, optimizer, pool = PAPER[module]
    config = module.get_config()
    loss = config.loss
    assert (loss.lambda_1, loss.lambda_2, loss.lambda_3, loss.lambda_4) == mmsr
    assert (loss.cycle, loss.identity, loss.reconstruction, loss.kl) == others
    assert (config.optimizer.learning_rate, config.optimizer.l2) == optimizer
    assert config.pool_size == pool


@every_config
@pytest.mark.parametrize("preset", ["paper", "demo"])
def test_every_preset_makes_networks(module: ModuleType, preset: str) -> None:
    config = module.get_config(preset)
    check_config(config)
    name = module.__name__.rpartition(".")[2]
    assert config.name == name + ("_demo" if preset == "demo" else "")
    assert config.method == name.removesuffix("_without_mmsr")
    params = jax.eval_shape(methods.create(config).init, jax.random.key(0))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params["generators"])]
    assert sum(sizes) > 1e6 if preset == "paper" else 1e5 < sum(sizes) < 4e5


@every_config
def test_the_demos_differ_in_what_is_compared_alone(module: ModuleType) -> None:
    """Data, schedule and optimiser are one, so that the comparison has equal budgets."""
    config, reference = module.get_config("demo"), cyclegan.get_config("demo")
    assert config.data == reference.data
    assert (config.steps, config.batch_size) == (reference.steps, reference.batch_size)
    assert dataclasses.replace(config.optimizer, l2=0.0) == reference.optimizer


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
        ("data__residency", "disk", "host, device"),
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
        ("steps_per_dispatch", 1),
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


def test_several_steps_a_dispatch_ask_for_resident_patches() -> None:
    with pytest.raises(
        UserError, match=r"config\.steps_per_dispatch=2: .*config\.data\.residency='host'"
    ):
        check_config(changed(steps_per_dispatch=2))
    check_config(changed(steps_per_dispatch=2, data__residency="device"))


@pytest.mark.parametrize("field", ["steps", "log_every", "validate_every", "checkpoint_every"])
def test_a_dispatch_ends_where_the_host_has_something_to_do(field: str) -> None:
    fields = {"data__residency": "device", "steps_per_dispatch": 20, field: 30}
    with pytest.raises(UserError, match=rf"config\.{field}=30: .*a multiple .*dispatch=20$"):
        check_config(changed(**fields))
    check_config(changed(**fields | {field: 60}))


@pytest.mark.parametrize("scale", [0, 1, 3, 6, -2, 64])
def test_scale_is_a_power_of_two(scale: int) -> None:
    with pytest.raises(UserError, match=rf"config\.data\.scale={scale}: must be a power of two"):
        check_config(changed(data__scale=scale))


def test_the_originals_halve_twice() -> None:
    config = unit_original.get_config()
    config.data.scale = 2
    with pytest.raises(UserError, match=r"config\.data\.scale=2: unit_original .* at least 4"):
        check_config(config)


def test_identity_belongs_to_the_original_cyclegan() -> None:
    for module in (cyclegan, unit, unit_original):
        config = module.get_config()
        config.loss.identity = 5.0
        with pytest.raises(UserError, match=rf"config\.loss\.identity=5\.0: .*{config.method}"):
            check_config(config)


def test_scans_of_phantoms_are_large_enough_to_be_scored() -> None:
    with pytest.raises(UserError, match=r"size_px=192: must be a multiple of 16, at least 240"):
        check_config(changed(data__scale=16, data__phantom__size_px=192))


@pytest.mark.parametrize("scale", [2, 4, 8, 16])
def test_powers_of_two(scale: int) -> None:
    check_config(changed(data__scale=scale))


@pytest.mark.parametrize("window", ["gaussian", "global"])
def test_patches_must_give_the_discriminators_a_score(window: str) -> None:
    with pytest.raises(UserError, match=r"config\.data\.clinical_patch_px=11: .*at least 12"):
        check_config(changed(data__clinical_patch_px=11, loss__ssim_window=window))
    check_config(changed(data__clinical_patch_px=12, loss__ssim_window=window))
