"""Where the networks run."""

import importlib.util
import os
from typing import Literal, cast

from benchmarks.processes import in_a_process
from data_pipelines.errors import UserError
from mmsr_jax.host_memory import keep_heap

Device = Literal["cpu", "gpu"]

# JAX would take most of the device's memory, and the contenders live side by side.
_NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def chosen_device(name: str) -> Device:
    """The device that a flag names; "auto" is an accelerator where both frameworks have one.

    Raises:
      UserError: there is no PyTorch.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install -e .[benchmark]")
    if name == "auto":
        return "gpu" if in_a_process(_both_have_a_gpu) else "cpu"
    return cast("Device", name)


def prepare_process(device: Device, *, host_memory_kept: bool) -> None:
    """Let this process run on a device, beside others; to be called before a framework is loaded.

    Args:
      device: JAX would take another one if it could.
      host_memory_kept: by `mmsr_jax.host_memory.keep_heap`.
    """
    os.environ |= _NO_PREALLOCATION
    if device == "cpu":
        os.environ |= {"JAX_PLATFORMS": "cpu"}
    if host_memory_kept:
        keep_heap()


def gpu_name() -> str:
    """As PyTorch names it."""
    return in_a_process(_gpu_name)


def torch_device(device: Device) -> str:
    """PyTorch's name of a device."""
    return {"cpu": "cpu", "gpu": "cuda"}[device]


def _both_have_a_gpu() -> bool:
    os.environ |= _NO_PREALLOCATION
    import jax
    import torch

    return jax.default_backend() == "gpu" and torch.cuda.is_available()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()
