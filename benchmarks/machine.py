"""What a benchmark ran on."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.device import Device, gpu_name


def machine(device: Device, packages: Iterable[str]) -> dict[str, Any]:
    """Device, cores, memory, system and the versions of `packages`."""
    return {
        "device": device,
        "device_name": gpu_name() if device == "gpu" else _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {package: importlib.metadata.version(package) for package in packages}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
