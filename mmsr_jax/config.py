"""The typed configuration of a run. Every field can be overridden on the command line."""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal, get_args

from data_pipelines.errors import UserError
from data_pipelines.typed_json import typed
from mmsr_jax.losses.mmsr import PixelLoss, SsimConstants, SsimWindow
from mmsr_jax.networks.blocks import Norm, Upsample
from mmsr_jax.networks.generators import Base

Residency = Literal["host", "device"]

_SMALLEST_PATCH_PX = 12  # gives the clinical discriminator one score; the SSIM window needs 11
_SMALLEST_SCAN_PX = 15  # the SSIM window of 11 without two pixels at each border
_LARGEST_SCALE = 32  # the evaluation's phantoms have 512 micro pixels
_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "steps_per_dispatch": 1,
    "pool_size": 0,
    "log_every": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "evaluation_phantoms": 1,
    "data.validation_patches": 1,
    "networks.sr_channels": 1,
    "networks.sr_blocks": 0,
    "networks.sr_tail_channels": 1,
    "networks.down_channels": 1,
    "networks.down_blocks": 0,
    "networks.unit_channels": 1,
    "networks.unit_blocks": 0,
    "networks.original_channels": 1,
    "networks.original_blocks": 0,
    "networks.discriminator_channels": 1,
    "networks.discriminator_max_channels": 1,
    "optimizer.warmup_steps": 0,
    "seed": 0,
    "data.phantom.cases": 1,
    "data.phantom.size_px": 128,
    "data.phantom.slices": 1,
    "data.phantom.held_out_cases": 0,
    "data.phantom.patches_per_volume": 2,
    "data.phantom.seed": 0,
}
_MOST = {"_blocks": 100, "_channels": 1 << 16}  # more takes minutes to trace
_RANGES = {
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.clip_update_rms": (0, math.inf),
    "optimizer.beta_1": (0, 1),
    "optimizer.beta_2": (0, 1),
    "optimizer.decay_fraction": (0, 1),
    "optimizer.l2": (0, math.inf),
}


@dataclasses.dataclass
class PhantomConfig:
    """The embedded dataset, made when no dataset is named."""

    cases: int = 16  # scans a domain; the micro phantoms are other phantoms than the clinical ones
    size_px: int = 1024  # micro pixels on a side
    slices: int = 4
    held_out_cases: int = 4  # imaged by both scanners: ground truth, never trained on
    patches_per_volume: int = 625
    seed: int = 0


@dataclasses.dataclass
class DataConfig:
    """Which dataset, and what is done to its patches."""

    directory: str = ""  # made by data_pipelines.prepare; empty: the embedded phantoms
    scale: int = 8
    clinical_patch_px: int = 32
    augment: bool = False  # flips and quarter turns
    residency: Residency = "host"  # or device: all training patches in the accelerator's memory
    validation_patches: int = 16
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclasses.dataclass
class NetworksConfig:
    """Widths and kinds of the networks; those of other methods than the run's stay unused."""

    sr_channels: int = 64
    sr_blocks: int = 9
    sr_tail_channels: int = 32  # of the first upsampling block; each further one has half
    down_channels: int = 32
    down_blocks: int = 6
    unit_channels: int = 128  # of SR-UNIT's latent code
    unit_blocks: int = 3  # of each encoder and decoder, beside the shared ones
    original_channels: int = 64  # of the same-size networks' first layer
    original_blocks: int = 9
    discriminator_channels: int = 64
    discriminator_max_channels: int = 512
    norm: Norm = "pixel"
    upsample: Upsample = "nearest"  # of SR-CycleGAN
    unit_upsample: Upsample = "shuffle"
    base: Base = "none"


@dataclasses.dataclass
class LossConfig:
    """Weights and options of the loss terms (paper equations 1 to 4)."""

    lambda_1: float = 2.0  # structure, clinical domain
    lambda_2: float = 1.0  # structure, micro domain
    lambda_3: float = 1.0  # intensity, clinical domain
    lambda_4: float = 1.0  # intensity, micro domain
    ssim_constants: SsimConstants = "printed"
    ssim_window: SsimWindow = "gaussian"
    luminance_factor: float = 2.0
    pixel_loss: PixelLoss = "mse"
    cycle: float = 10.0
    identity: float = 0.0  # of networks of one size; CycleGAN's is 5
    reconstruction: float = 10.0  # UNIT: of auto-encoded images
    kl: float = 0.01  # UNIT: of the codes' distributions

    def without_mmsr(self) -> None:
        """Set λ1 to λ4 to 0."""
        self.lambda_1 = self.lambda_2 = self.lambda_3 = self.lambda_4 = 0.0


@dataclasses.dataclass
class OptimizerConfig:
    """Adam with a rising, then constant, then linearly vanishing learning rate."""

    learning_rate: float = 2e-4
    beta_1: float = 0.5
    beta_2: float = 0.999
    l2: float = 0.0  # of the parameters, added to the gradient before Adam; UNIT's is 1e-4
    clip_update_rms: float = 0.0  # bounds Adam's update of an array, in learning rates; 0: nothing
    warmup_steps: int = 0  # first steps, in which the rate rises linearly
    decay_fraction: float = 0.5  # the share of the steps, at the end, that decays to zero


@dataclasses.dataclass
class Config:
    """Everything that decides a run."""

    name: str = "cyclegan"
    method: str = "cyclegan"
    seed: int = 0
    compute_dtype: str = "float32"  # or bfloat16; parameters, norms and losses stay float32
    steps: int = 2_000_000
    batch_size: int = 1
    steps_per_dispatch: int = 1  # of the host to the device; more ask for data.residency=device
    remat: bool = False  # compute activations again in the backward pass: less memory, more time
    pool_size: int = 50  # past fakes for a discriminator, of all rows; 0: the newest alone
    log_every: int = 100
    validate_every: int = 5_000
    checkpoint_every: int = 5_000
    evaluation_phantoms: int = 6  # super-resolved and measured at the end
    stop_on_collapse: bool = False  # stop, instead of warning, when SR is blank or inverted
    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def config_from_dict(values: dict[str, Any]) -> Config:
    """The configuration that `dataclasses.asdict` turned into nested dictionaries.

    Raises:
      UserError: a field is unknown to this version, or `values` are no configuration.
    """
    try:
        return typed(values, Config)
    except ValueError as error:
        raise UserError(f"it is no configuration of this version: {error}") from error


def differing_fields(a: Config, b: Config) -> list[str]:
    """Lines "field: value in a, value in b" for every field that differs."""
    flat_a, flat_b = (_flat(dataclasses.asdict(config)) for config in (a, b))
    return [
        f"{name}: {flat_a[name]!r} now, {flat_b[name]!r} there"
        for name in flat_a
        if flat_a[name] != flat_b[name]
    ]


def field_names() -> list[str]:
    """Every overridable field as a dotted path."""
    return list(_flat(dataclasses.asdict(Config())))


def check_config(config: Config) -> None:
    """Reject values that no run can use.

    Raises:
      UserError: naming the field, its value and what is possible.
    """
    choices = {
        "compute_dtype": (config.compute_dtype, ("float32", "bfloat16")),
        "data.residency": (config.data.residency, get_args(Residency)),
        "networks.norm": (config.networks.norm, get_args(Norm)),
        "networks.upsample": (config.networks.upsample, get_args(Upsample)),
        "networks.unit_upsample": (config.networks.unit_upsample, get_args(Upsample)),
        "networks.base": (config.networks.base, get_args(Base)),
        "loss.ssim_constants": (config.loss.ssim_constants, get_args(SsimConstants)),
        "loss.ssim_window": (config.loss.ssim_window, get_args(SsimWindow)),
        "loss.pixel_loss": (config.loss.pixel_loss, get_args(PixelLoss)),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"config.{name}={value!r}: must be one of {', '.join(allowed)}")
    if not config.name.isprintable():
        raise UserError(f"config.name={config.name!r}: must be printable")
    values = _flat(dataclasses.asdict(config))
    for name, least in _LEAST.items():
        if values[name] < least:
            raise UserError(f"config.{name}={values[name]}: must be at least {least}")
    for name, value in values.items():
        for ending, most in _MOST.items():
            if name.endswith(ending) and value > most:
                raise UserError(f"config.{name}={value}: must be at most {most}")
    for name, (low, high) in _RANGES.items():
        if not (low <= values[name] <= high and math.isfinite(values[name])):
            raise UserError(f"config.{name}={values[name]}: must be from {low} to {high}")
    _check_dispatch(config)
    scale = config.data.scale
    if not 2 <= scale <= _LARGEST_SCALE or scale & (scale - 1):
        raise UserError(
            f"config.data.scale={scale}: must be a power of two from 2 to {_LARGEST_SCALE}"
        )
    if config.data.clinical_patch_px < _SMALLEST_PATCH_PX:
        raise UserError(
            f"config.data.clinical_patch_px={config.data.clinical_patch_px}: must be at least "
            f"{_SMALLEST_PATCH_PX}, as the discriminators have no score for smaller patches"
        )
    if config.loss.identity and config.method != "cyclegan_original":
        raise UserError(
            f"config.loss.identity={config.loss.identity}: a term of cyclegan_original alone; must "
            f"be 0 for config.method={config.method!r}"
        )
    if scale == 2 and config.method.endswith("_original"):
        raise UserError(
            f"config.data.scale=2: {config.method} halves its images twice; must be at least 4"
        )
    size_px, multiple = config.data.phantom.size_px, max(scale, 8)
    if size_px % multiple or size_px < _SMALLEST_SCAN_PX * scale:
        raise UserError(
            f"config.data.phantom.size_px={size_px}: must be a multiple of {multiple}, at least "
            f"{_SMALLEST_SCAN_PX * scale}, so that its scans can be scored"
        )


def _check_dispatch(config: Config) -> None:
    steps = config.steps_per_dispatch
    if steps > 1 and config.data.residency != "device":
        raise UserError(
            f"config.steps_per_dispatch={steps}: must be 1 for config.data.residency="
            f"{config.data.residency!r}, whose batches come one by one"
        )
    for name in ("steps", "log_every", "validate_every", "checkpoint_every"):
        value = getattr(config, name)
        if value % steps:
            raise UserError(
                f"config.{name}={value}: must be a multiple of config.steps_per_dispatch={steps}"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
