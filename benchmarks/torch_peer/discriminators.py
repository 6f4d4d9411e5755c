"""`mmsr_jax.networks.discriminators` in PyTorch."""

import itertools
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_peer.blocks import conv, instance_norm, leaky_relu


class PatchDiscriminator(nn.Module):
    """PatchGAN with `strided` convolutions of stride 2; a list of one score, as of one scale."""

    def __init__(self, *, channels: int, max_channels: int, strided: int):
        super().__init__()
        widths = [1, *(min(channels * 2**level, max_channels) for level in range(strided + 1))]
        self.layers = nn.ModuleList(
            [
                conv(narrow, wide, 4, stride=2 if level < strided else 1, padding_mode="zeros")
                for level, (narrow, wide) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.head = conv(widths[-1], 1, 4, padding_mode="zeros")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Scores, float32, of images in [-1, 1]."""
        features = leaky_relu(self.layers[0](images))
        for layer in self.layers[1:]:
            features = leaky_relu(instance_norm(layer(features)))
        return [self.head(features).float()]


class MultiScaleDiscriminator(nn.Module):
    """SR-UNIT's discriminator: the same small network at several scales of an image."""

    def __init__(self, *, channels: int, max_channels: int, layers: int, scales: int):
        super().__init__()
        widths = [1, *(min(channels * 2**level, max_channels) for level in range(layers))]
        self.scales = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        *(conv(*pair, 4, stride=2) for pair in itertools.pairwise(widths)),
                        conv(widths[-1], 1, 1),
                    ]
                )
                for _ in range(scales)
            ]
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Scores at every scale, finest first, float32, of images in [-1, 1]."""
        scores = []
        for index, scale in enumerate(self.scales):
            *layers, head = cast("nn.ModuleList", scale)
            if index:
                images = functional.avg_pool2d(images, 3, 2, padding=1, count_include_pad=False)
            features = images
            for layer in layers:
                features = leaky_relu(layer(features))
            scores.append(head(features).float())
        return scores
