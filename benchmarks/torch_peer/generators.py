"""`mmsr_jax.networks.generators` in PyTorch, with pixel norm and no base."""

import itertools

import torch
from torch import nn

from benchmarks.torch_peer.blocks import (
    UPSAMPLE_BLOCKS,
    ImageHead,
    ResidualBlock,
    conv,
    leaky_relu,
)


class SrResnet(nn.Module):
    """G1, clinical to micro."""

    def __init__(
        self, *, channels: int, blocks: int, tail_channels: int, scale: int, upsample: str
    ):
        super().__init__()
        levels = scale.bit_length() - 1
        widths = [channels, *(max(tail_channels >> level, 1) for level in range(levels))]
        self.stem = conv(1, channels, 7)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.post = conv(channels, channels, 3)
        block = UPSAMPLE_BLOCKS[upsample]
        self.upsampling = nn.Sequential(*(block(*pair) for pair in itertools.pairwise(widths)))
        self.head = ImageHead(widths[-1])

    def forward(self, clinical: torch.Tensor) -> torch.Tensor:
        """Super-resolve (n, 1, h, w) images in [-1, 1]; (n, 1, h·s, w·s) in [-1, 1]."""
        features = self.blocks(leaky_relu(self.stem(clinical)))
        return self.head(self.upsampling(self.post(features)))


class DownResnet(nn.Module):
    """G2, micro to clinical."""

    def __init__(self, *, channels: int, blocks: int, scale: int):
        super().__init__()
        levels = scale.bit_length() - 1
        widths = [channels * min(2**level, 4) for level in range(levels + 1)]
        self.stem = conv(1, channels, 7)
        self.downsampling = nn.ModuleList(
            [conv(narrow, wide, 4, stride=2) for narrow, wide in itertools.pairwise(widths)]
        )
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(blocks)))
        self.head = ImageHead(widths[-1])

    def forward(self, micro: torch.Tensor) -> torch.Tensor:
        """Clinical-like (n, 1, H/s, W/s) images of (n, 1, H, W) ones, both in [-1, 1]."""
        features = leaky_relu(self.stem(micro))
        for downsample in self.downsampling:
            features = leaky_relu(downsample(features))
        return self.head(self.blocks(features))
