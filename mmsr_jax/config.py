"""The typed configuration of a run. Every field can be overridden on the command line."""

import dataclasses
from dataclasses import field

from mmsr_jax.losses.mmsr import PixelLoss, SsimConstants, SsimWindow
from mmsr_jax.networks.blocks import Norm, Upsample


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
    validation_patches: int = 16
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclasses.dataclass
class NetworksConfig:
    """Widths and kinds of the four networks."""

    sr_channels: int = 64
    sr_blocks: int = 9
    down_channels: int = 32
    down_blocks: int = 6
    discriminator_channels: int = 64
    norm: Norm = "pixel"
    upsample: Upsample = "nearest"


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


@dataclasses.dataclass
class OptimizerConfig:
    """Adam with a constant, then linearly vanishing learning rate."""

    learning_rate: float = 2e-4
    beta_1: float = 0.5
    beta_2: float = 0.999
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
    pool_size: int = 50
    log_every: int = 100
    validate_every: int = 5_000
    checkpoint_every: int = 5_000
    stop_on_collapse: bool = False  # stop, instead of warning, when SR is blank or inverted
    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
