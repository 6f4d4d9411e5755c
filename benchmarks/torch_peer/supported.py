"""Which configurations PyTorch's side can train."""

from data_pipelines.errors import UserError
from mmsr_jax.config import Config

METHODS = ("cyclegan", "unit")
_UPSAMPLE = ("nearest", "shuffle")


def check_supported(config: Config) -> None:
    """Reject what PyTorch's side does not have.

    Raises:
      UserError: naming the field, its value and what is possible.
    """
    networks, loss = config.networks, config.loss
    possible = {
        "method": (config.method, METHODS),
        "networks.norm": (networks.norm, ("pixel",)),
        "networks.upsample": (networks.upsample, _UPSAMPLE),
        "networks.unit_upsample": (networks.unit_upsample, _UPSAMPLE),
        "networks.base": (networks.base, ("none",)),
        "loss.ssim_window": (loss.ssim_window, ("gaussian",)),
        "loss.luminance_factor": (loss.luminance_factor, (2.0,)),
        "loss.pixel_loss": (loss.pixel_loss, ("mse",)),
        "optimizer.clip_update_rms": (config.optimizer.clip_update_rms, (0.0,)),
    }
    for name, (value, allowed) in possible.items():
        if value not in allowed:
            choices = " or ".join(map(str, allowed))
            raise UserError(f"config.{name}={value!r}: must be {choices} to compare with PyTorch")
