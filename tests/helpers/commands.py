"""The shrunk demo, and the command lines of the project as processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from configs import cyclegan
from mmsr_jax.config import Config

REPOSITORY = Path(__file__).parents[2]


class FinishedRun(NamedTuple):
    workdir: Path
    result: subprocess.CompletedProcess


# The shipped demo, shrunk. Everything that a compiled function depends on is the same in all
# tests, so that they compile it once.
DEMO = "--config=configs/cyclegan.py:demo"
SMALL = {
    "steps": 48,
    "batch_size": 2,
    "pool_size": 3,
    "log_every": 3,
    "validate_every": 24,
    "checkpoint_every": 4,
    "evaluation_phantoms": 1,
    "data.clinical_patch_px": 12,
    "data.validation_patches": 2,
    "data.phantom.cases": 2,
    "data.phantom.size_px": 128,
    "data.phantom.slices": 1,
    "data.phantom.held_out_cases": 1,
    "data.phantom.patches_per_volume": 24,
    "networks.sr_channels": 4,
    "networks.sr_blocks": 1,
    "networks.sr_tail_channels": 4,
    "networks.down_channels": 4,
    "networks.down_blocks": 1,
    "networks.discriminator_channels": 4,
}


def small_demo(workdir: Path, **changes: object) -> list[str]:
    """Flags of the shrunk demo; `changes` are fields, with __ for a dot."""
    fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [DEMO, f"--workdir={workdir}", *overrides]


def small_config(**changes: object) -> Config:
    """What the flags of `small_demo` make."""
    config = cyclegan.get_config("demo")
    fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    for path, value in fields.items():
        *parents, name = path.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


def start(module: str, *flags: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",  # libraries may have changed the locale of this process
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
    )


# Compiles in half the time.
QUICK = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"


def start_several(count: int, *flags: object, devices: int = 2) -> list[subprocess.Popen]:
    """Processes that train together, with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(
            "mmsr_jax.main",
            *flags,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(number),
            XLA_FLAGS=f"{QUICK} --xla_force_host_platform_device_count={devices}",
        )
        for number in range(count)
    ]


def finish(process: subprocess.Popen, timeout_s: float = 300) -> subprocess.CompletedProcess:
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(module: str, *flags: object, **environment: str) -> subprocess.CompletedProcess:
    return finish(start(module, *flags, **environment))


def error_line(result: subprocess.CompletedProcess) -> str:
    """The one line on standard error of a command that failed as it should."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def last_error_line(result: subprocess.CompletedProcess) -> str:
    """Likewise, of a command that had shown its progress before."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    *progress, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not any("error" in before for before in progress)
    return line
