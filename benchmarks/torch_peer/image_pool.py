"""`mmsr_jax.image_pool` in PyTorch: past fakes on the device, chosen by the host."""

import random

import torch


class ImagePool:
    """Filled first; then each fake is, with probability one half, exchanged for an older one.

    Each row of the batch has its own part. The host knows how full it is and draws, so that no step
    waits for the device.
    """

    def __init__(self, total: int, like: torch.Tensor):
        rows, *shape = like.shape
        self._size, self._filled = -(-total // rows), 0
        self._images = torch.zeros(rows, self._size, *shape, device=like.device)

    def exchange(self, fakes: torch.Tensor) -> torch.Tensor:
        """Put (n, 1, h, w) fakes into the pool; returns what the discriminator sees instead."""
        seen = fakes.clone()
        if self._filled < self._size:
            self._images[:, self._filled] = fakes
            self._filled += 1
            return seen
        for row, fake in enumerate(fakes):
            if random.random() < 0.5:
                slot = random.randrange(self._size)
                seen[row] = self._images[row, slot]
                self._images[row, slot] = fake
        return seen
