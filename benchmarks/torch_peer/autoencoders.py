"""`mmsr_jax.networks.unit` in PyTorch, with pixel norm."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.torch_peer.blocks import (
    UPSAMPLE_BLOCKS,
    ImageHead,
    ResidualBlock,
    conv,
    leaky_relu,
)


class Encoder(nn.Module):
    """One image to features: conv7, conv4 of stride 2 if `strided`, else conv3, residual blocks."""

    def __init__(self, *, widths: Sequence[int], strided: bool, blocks: int):
        super().__init__()
        size, stride = (4, 2) if strided else (3, 1)
        self.stem = conv(1, widths[0], 7)
        self.convs = nn.ModuleList(
            [conv(*pair, size, stride=stride) for pair in itertools.pairwise(widths)]
        )
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(blocks)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of (n, 1, h, w) images in [-1, 1]."""
        features = leaky_relu(self.stem(images))
        for convolution in self.convs:
            features = leaky_relu(convolution(features))
        return self.blocks(features)


class Decoder(nn.Module):
    """Features to one image: residual blocks, upsampling blocks or conv3, the image head."""

    def __init__(self, *, widths: Sequence[int], upsample: str | None, blocks: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(widths[0]) for _ in range(blocks)))
        pairs = list(itertools.pairwise(widths))
        self.upsampling = nn.ModuleList(
            [UPSAMPLE_BLOCKS[upsample](*pair) for pair in pairs] if upsample else []
        )
        self.convs = nn.ModuleList([] if upsample else [conv(*pair, 3) for pair in pairs])
        self.head = ImageHead(widths[-1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The image, float32 in [-1, 1], that `features` show."""
        features = self.blocks(features)
        for upsample in self.upsampling:
            features = upsample(features)
        for convolution in self.convs:
            features = leaky_relu(convolution(features))
        return self.head(features)
