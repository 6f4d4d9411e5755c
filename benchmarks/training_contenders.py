"""What trains: our step, and PyTorch's in any of its variants.

Each is made in a process of its own and imports only what it needs.
"""

import itertools
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.device import Device, prepare_process, torch_device
from benchmarks.memory import jax_peak_mib, peak_mib, torch_peak_mib
from mmsr_jax.host_memory import keep_host_memory

_WEIGHTS = "weights.npz"
Config = dict[str, Any]  # of a run, in nested dictionaries


class Variant(NamedTuple):
    """Ways in which PyTorch may be faster.

    Attributes:
      compiled: by torch.compile.
      cuda_graphs: of what is compiled.
      channels_last: the networks' memory format.
      host_memory_kept: by `mmsr_jax.host_memory.keep_heap`.
    """

    compiled: bool
    cuda_graphs: bool
    channels_last: bool
    host_memory_kept: bool


def uncompiled_variants(device: Device) -> list[Variant]:
    """Every memory format, and on a CPU with host memory kept and not."""
    kept = (False, True) if device == "cpu" else (False,)
    return [Variant(False, False, *choice) for choice in itertools.product((False, True), kept)]


def compiled_variants(variant: Variant, device: Device) -> list[Variant]:
    """A variant compiled in every way that a device has."""
    graphs = (False,) if device == "cpu" else (False, True)
    return [variant._replace(compiled=True, cuda_graphs=used) for used in graphs]


def write_weights(folder: Path, config: Config) -> None:
    """Write the parameters with which our training starts."""
    from benchmarks.weights import named_weights
    from mmsr_jax import methods
    from mmsr_jax.config import config_from_dict
    from mmsr_jax.train_state import create_train_state

    typed = config_from_dict(config)
    params = create_train_state(typed, methods.create(typed)).params
    weights: dict[str, Any] = named_weights(params)
    np.savez(folder / _WEIGHTS, **weights)


class OurTraining:
    """`mmsr_jax.train_step` as `mmsr_jax.main` uses it, on one device."""

    def __init__(self, config: Config, device: Device):
        prepare_process(device, host_memory_kept=True)
        keep_host_memory()
        import jax
        import jax.numpy as jnp

        from mmsr_jax import methods
        from mmsr_jax.config import config_from_dict
        from mmsr_jax.mesh import data_mesh, replicated, split_batch
        from mmsr_jax.train_state import create_train_state
        from mmsr_jax.train_step import make_train_step

        jax.config.update("jax_enable_compilation_cache", False)
        typed, mesh = config_from_dict(config), data_mesh(jax.devices()[:1])
        method = methods.create(typed)

        def losses(params: Any, batch: Any, key: Any, after: Any) -> Any:
            """Their sum; `after`, what the call before gave, keeps the calls in turn."""
            of_generators, (fakes, terms) = method.generator_loss(params, batch, key)
            of_discriminators, more_terms = method.discriminator_loss(params, fakes, batch)
            return of_generators + of_discriminators + 0 * after, terms | more_terms

        self._device = device
        self._train_step = make_train_step(typed, method, mesh)
        self._forward = jax.jit(losses)
        self._state = jax.device_put(create_train_state(typed, method), replicated(mesh))
        self._batch = jax.device_put(_random_batch(config), split_batch(mesh))
        self._key = jax.random.key(0)
        self._loss = jax.device_put(jnp.zeros(()), replicated(mesh))

    def train(self, steps: int) -> None:
        """Train for `steps` steps."""
        for _ in range(steps):
            self._state, done = self._train_step(self._state, self._batch)
        done.block_until_ready()

    def forward(self, steps: int) -> None:
        """Both losses without gradients and updates, `steps` times."""
        for _ in range(steps):
            self._loss, _ = self._forward(self._state.params, self._batch, self._key, self._loss)
        self._loss.block_until_ready()

    def loss_terms(self) -> dict[str, float]:
        """Every term by name, summed over the steps until now."""
        return {name: float(value) for name, value in self._state.metric_sums.items()}

    def peaks_mib(self) -> dict[str, float | None]:
        """The most memory until now."""
        return {"peak_mib": peak_mib(), "device_peak_mib": jax_peak_mib(self._device)}


class TorchTraining:
    """PyTorch's step, from the same weights and on the same batch."""

    def __init__(self, config: Config, device: Device, folder: Path, variant: Variant):
        prepare_process(device, host_memory_kept=variant.host_memory_kept)
        # What another process has compiled would be read back.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
        import torch

        from benchmarks.torch_peer.train_step import TrainStep, create_method
        from benchmarks.torch_peer.weights import copy_weights

        torch.set_num_threads(os.cpu_count() or 1)
        torch.backends.cudnn.benchmark = True
        method = create_method(_attributes(config))
        copy_weights(np.load(folder / _WEIGHTS), method)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        method = method.to(torch_device(device)).to(memory_format=layout)
        self._device = device
        self._train_step = TrainStep(
            method, compiled=variant.compiled, cuda_graphs=variant.cuda_graphs
        )
        self._batch = {
            domain: torch.from_numpy(images.transpose(0, 3, 1, 2)).to(torch_device(device))
            for domain, images in _random_batch(config).items()
        }

    def train(self, steps: int) -> None:
        """Train for `steps` steps."""
        for _ in range(steps):
            self._train_step(self._batch)
        self._wait()

    def forward(self, steps: int) -> None:
        """Both losses without gradients and updates, `steps` times."""
        for _ in range(steps):
            self._train_step.losses(self._batch)
        self._wait()

    def loss_terms(self) -> dict[str, float]:
        """Every term by name, summed over the steps until now."""
        return {name: float(value) for name, value in self._train_step.metric_sums.items()}

    def peaks_mib(self) -> dict[str, float | None]:
        """The most memory until now."""
        return {"peak_mib": peak_mib(), "device_peak_mib": torch_peak_mib(self._device)}

    def _wait(self) -> None:
        import torch

        if self._device == "gpu":
            torch.cuda.synchronize()


def _random_batch(config: Config) -> dict[str, np.ndarray]:
    """NHWC, float32, uniform in [-1, 1]."""
    rng = np.random.default_rng(0)
    clinical_px = config["data"]["clinical_patch_px"]
    sizes = {"clinical": clinical_px, "micro": clinical_px * config["data"]["scale"]}
    return {
        domain: rng.uniform(-1, 1, (config["batch_size"], size, size, 1)).astype(np.float32)
        for domain, size in sizes.items()
    }


def _attributes(config: Config) -> Any:
    """The configuration with attributes, without `mmsr_jax.config`, which imports JAX."""
    return json.loads(json.dumps(config), object_hook=lambda fields: SimpleNamespace(**fields))
