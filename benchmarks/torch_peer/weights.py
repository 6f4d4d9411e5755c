"""Weights of ours for PyTorch."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from benchmarks.torch_peer.blocks import ShuffleUpsampleBlock

_TORCH_NAMES = {".conv.kernel": ".weight", ".conv.bias": ".bias"}


def copy_weights(weights: Mapping[str, np.ndarray], network: nn.Module) -> None:
    """Give PyTorch networks the weights of ours.

    Args:
      weights: of ours by the path of each, such as "blocks.0.first.conv.kernel".
      network: one network, or several by the same path; changed in place.

    Raises:
      RuntimeError: the weights are of another architecture.
    """
    network.load_state_dict({_torch_name(name): _torch_array(w) for name, w in weights.items()})
    for module in network.modules():
        if isinstance(module, ShuffleUpsampleBlock):
            _order_for_pixel_shuffle(module.conv)


def _torch_name(name: str) -> str:
    for ours, theirs in _TORCH_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _torch_array(weights: np.ndarray) -> torch.Tensor:
    """From (rows, columns, in, out) to (out, in, rows, columns); a bias stays."""
    return torch.tensor(weights.transpose(3, 2, 0, 1) if weights.ndim == 4 else weights)


@torch.no_grad()
def _order_for_pixel_shuffle(conv: nn.Conv2d) -> None:
    """Outputs by channel, then pixel of the block, as PyTorch has them; ours are by pixel first."""
    for parameter in conv.parameters():
        parameter.copy_(parameter.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1))
