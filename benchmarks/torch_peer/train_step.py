"""`mmsr_jax.train_step` in PyTorch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from benchmarks.torch_peer.cyclegan import CycleGan
from benchmarks.torch_peer.image_pool import ImagePool
from benchmarks.torch_peer.method import DOMAINS, Method, Tensors
from benchmarks.torch_peer.unit import Unit

if TYPE_CHECKING:
    from mmsr_jax.config import Config

_METHODS: dict[str, type[CycleGan] | type[Unit]] = {"cyclegan": CycleGan, "unit": Unit}
_BRANCHES = ("generators", "discriminators")


def create_method(config: Config) -> Method:
    """The method of a supported configuration, with weights of PyTorch's own."""
    return _METHODS[config.method](config)


class TrainStep:
    """One training step, which changes the method's weights; the learning rate is constant.

    Both generators are updated jointly with the discriminators frozen, then both discriminators on
    the same, pre-update fakes, handed through the image pools. Nothing of it waits for the device.
    """

    def __init__(self, method: Method, *, compiled: bool = False, cuda_graphs: bool = False):
        """Take a method on its device.

        Args:
          method: its weights are changed by every step.
          compiled: both losses, with their gradients, by torch.compile.
          cuda_graphs: of what is compiled.
        """
        self._method = method
        self._generator_loss = method.generator_loss
        self._discriminator_loss = method.discriminator_loss
        if compiled:
            mode = "reduce-overhead" if cuda_graphs else "default"
            compile_loss = functools.partial(torch.compile, dynamic=False, mode=mode)
            self._generator_loss = compile_loss(method.generator_loss)
            self._discriminator_loss = compile_loss(method.discriminator_loss)
        self._optimizers = {name: _adam(method, name) for name in _BRANCHES}
        self._pools: dict[str, ImagePool] = {}
        self._names: list[str] = []
        self._sums = torch.zeros(())

    def __call__(self, batch: Tensors, noise: Tensors | None = None) -> None:
        """Train on a batch; see `Method.generator_loss`."""
        torch.compiler.cudagraph_mark_step_begin()
        self._method.discriminators.requires_grad_(False)
        loss, fakes, terms = self._generator_loss(batch, noise)
        self._update("generators", loss)
        self._method.discriminators.requires_grad_(True)
        loss, more_terms = self._discriminator_loss(self._through_pools(fakes), batch)
        self._update("discriminators", loss)
        self._add_to_sums(terms | more_terms)

    @property
    def metric_sums(self) -> Tensors:
        """Every term by name, summed over the steps until now."""
        return dict(zip(self._names, self._sums))

    @torch.no_grad()
    def losses(self, batch: Tensors) -> torch.Tensor:
        """Both losses of a batch without their gradients, on the newest fakes; their sum."""
        torch.compiler.cudagraph_mark_step_begin()
        of_generators, fakes, _ = self._generator_loss(batch)
        of_discriminators, _ = self._discriminator_loss(fakes, batch)
        return of_generators + of_discriminators

    def _update(self, branch: str, loss: torch.Tensor) -> None:
        loss.backward()
        self._optimizers[branch].step()
        self._optimizers[branch].zero_grad()

    def _through_pools(self, fakes: Tensors) -> Tensors:
        size = self._method.config.pool_size
        if not size:
            return fakes
        for domain in DOMAINS:
            if domain not in self._pools:
                self._pools[domain] = ImagePool(size, fakes[domain])
        return {domain: self._pools[domain].exchange(fakes[domain]) for domain in DOMAINS}

    def _add_to_sums(self, terms: Tensors) -> None:
        self._names = list(terms)
        values = torch.stack(list(terms.values()))
        self._sums = self._sums.to(values.device) + values


def _adam(method: Method, branch: str) -> torch.optim.Adam:
    optimizer = method.config.optimizer
    return torch.optim.Adam(
        getattr(method, branch).parameters(),
        lr=optimizer.learning_rate,
        betas=(optimizer.beta_1, optimizer.beta_2),
        weight_decay=optimizer.l2,
        fused=True,
    )
