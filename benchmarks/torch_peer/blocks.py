"""`mmsr_jax.networks.blocks` in PyTorch: the kinds that the preset `paper` uses."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    *,
    stride: int = 1,
    padding_mode: Literal["zeros", "reflect"] = "reflect",
) -> nn.Conv2d:
    """A convolution whose output has the size of its input, divided by the stride."""
    padding = (size - 1) // 2
    return nn.Conv2d(
        channels_in, channels_out, size, stride, padding=padding, padding_mode=padding_mode
    )


def leaky_relu(features: torch.Tensor) -> torch.Tensor:
    """Leaky rectifier of slope 0.2."""
    return functional.leaky_relu(features, 0.2)


def pixel_norm(features: torch.Tensor) -> torch.Tensor:
    """Each pixel's vector divided by its root mean square over channels, in float32."""
    values = features.float()
    values = values * torch.rsqrt(values.square().mean(dim=1, keepdim=True) + 1e-6)
    return values.to(features.dtype)


def instance_norm(features: torch.Tensor) -> torch.Tensor:
    """Each channel standardised over the image, in float32, without learnt scale or offset."""
    return functional.instance_norm(features.float(), eps=1e-5).to(features.dtype)


class ResidualBlock(nn.Module):
    """x + norm(conv3(act(norm(conv3(x))))), with the pixel norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, channels, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add the block's residual to `features`."""
        residual = leaky_relu(pixel_norm(self.first(features)))
        return features + pixel_norm(self.second(residual))


class NearestUpsampleBlock(nn.Module):
    """Repeats pixels, then a conv3 with repeated borders and the activation.

    Reflection does repeat the borders, as the pixels come in pairs. PyTorch 2.14 cannot compile the
    gradient of padding_mode="replicate".
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = conv(channels_in, channels_out, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Double the size of `features`."""
        repeated = functional.interpolate(features, scale_factor=2, mode="nearest")
        return leaky_relu(self.conv(repeated))


class ShuffleUpsampleBlock(nn.Module):
    """conv3 to four times the channels, pixel shuffle, the activation."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = conv(channels_in, 4 * channels_out, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Double the size of `features`."""
        return leaky_relu(functional.pixel_shuffle(self.conv(features), 2))


UPSAMPLE_BLOCKS: dict[str, type[NearestUpsampleBlock] | type[ShuffleUpsampleBlock]] = {
    "nearest": NearestUpsampleBlock,
    "shuffle": ShuffleUpsampleBlock,
}


class ImageHead(nn.Module):
    """conv7 → one channel, × 0.1, tanh, in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, 1, 7)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The image that `features` show."""
        return torch.tanh(0.1 * self.conv(features).float())
