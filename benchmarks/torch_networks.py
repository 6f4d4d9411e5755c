"""G1 in PyTorch, of the same weights: what another framework is measured with."""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_TORCH_NAMES = {".conv.kernel": ".weight", ".conv.bias": ".bias"}


class SrResnet(nn.Module):
    """`mmsr_jax.networks.generators.SrResnet` with pixel norm, nearest upsampling and no base."""

    def __init__(self, *, channels: int, blocks: int, tail_channels: int, scale: int):
        super().__init__()
        levels = scale.bit_length() - 1
        widths = [channels, *(max(tail_channels >> level, 1) for level in range(levels))]
        self.stem = _conv(1, channels, 7)
        self.blocks = nn.ModuleList([ResidualBlock(channels) for _ in range(blocks)])
        self.post = _conv(channels, channels, 3)
        self.upsampling = nn.ModuleList(
            [UpsampleBlock(wide, narrow) for wide, narrow in itertools.pairwise(widths)]
        )
        self.head = ImageHead(widths[-1])

    def forward(self, clinical: torch.Tensor) -> torch.Tensor:
        """Super-resolve (n, 1, h, w) images in [-1, 1]; (n, 1, h·s, w·s) in [-1, 1]."""
        features = functional.leaky_relu(self.stem(clinical), 0.2)
        for block in self.blocks:
            features = block(features)
        features = self.post(features)
        for upsample in self.upsampling:
            features = upsample(features)
        return self.head(features)


class ResidualBlock(nn.Module):
    """x + norm(conv3(act(norm(conv3(x)))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.second = _conv(channels, channels, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add the block's residual to `features`."""
        residual = functional.leaky_relu(_pixel_norm(self.first(features)), 0.2)
        return features + _pixel_norm(self.second(residual))


class UpsampleBlock(nn.Module):
    """Repeats pixels, then a conv3 with repeated borders and the activation."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = _conv(channels_in, channels_out, 3, padding_mode="replicate")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Double the size of `features`."""
        repeated = functional.interpolate(features, scale_factor=2, mode="nearest")
        return functional.leaky_relu(self.conv(repeated), 0.2)


class ImageHead(nn.Module):
    """conv7 → one channel, × 0.1, tanh."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv(channels, 1, 7)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The image that `features` show."""
        return torch.tanh(0.1 * self.conv(features))


def copy_weights(weights: Mapping[str, np.ndarray], network: SrResnet) -> None:
    """Give a PyTorch network the weights of ours.

    Args:
      weights: of our network by the path of each in it, such as "blocks.0.first.conv.kernel".
      network: changed in place.

    Raises:
      RuntimeError: the weights are of another architecture.
    """
    network.load_state_dict({_torch_name(name): _torch_array(w) for name, w in weights.items()})


def _conv(
    channels_in: int, channels_out: int, size: int, padding_mode: str = "reflect"
) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2, padding_mode=padding_mode)


def _pixel_norm(features: torch.Tensor) -> torch.Tensor:
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + 1e-6)


def _torch_name(name: str) -> str:
    for ours, theirs in _TORCH_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _torch_array(weights: np.ndarray) -> torch.Tensor:
    """From (rows, columns, in, out) to (out, in, rows, columns); a bias stays."""
    return torch.tensor(weights.transpose(3, 2, 0, 1) if weights.ndim == 4 else weights)
