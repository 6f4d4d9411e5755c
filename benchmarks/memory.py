"""The most memory that the process which asks has held, in MiB."""

from pathlib import Path

from benchmarks.device import Device

_MIB = 2**20


def peak_mib() -> float:
    """Of main memory."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024


def torch_peak_mib(device: Device) -> float | None:
    """Of an accelerator's memory, by PyTorch; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / _MIB if device == "gpu" else None


def jax_peak_mib(device: Device) -> float | None:
    """Of an accelerator's memory, by JAX; None on a CPU."""
    import jax

    if device == "cpu":
        return None
    return (jax.local_devices()[0].memory_stats() or {})["peak_bytes_in_use"] / _MIB
