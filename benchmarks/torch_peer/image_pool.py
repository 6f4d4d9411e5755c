"""`mmsr_jax.image_pool` in PyTorch: past fakes on the device, chosen by the host."""

import random

import torch


class ImagePool:
    """Filled first; then each fake is, with probability one half, exchanged for an older one.

    The host knows how full the pool is and draws, so that no step waits for the device.
    """

    def __init__(self, size: int, like: torch.Tensor):
        self._images = torch.zeros(size, *like.shape[1:], device=like.device)
        self._filled = 0

    def exchange(self, fakes: torch.Tensor) -> torch.Tensor:
        """Put (n, 1, h, w) fakes into the pool; returns what the discriminator sees instead."""
        seen = fakes.clone()
        for index, fake in enumerate(fakes):
            if self._filled < len(self._images):
                self._images[self._filled] = fake
                self._filled += 1
            elif random.random() < 0.5:
                slot = random.randrange(len(self._images))
                seen[index] = self._images[slot]
                self._images[slot] = fake
        return seen
