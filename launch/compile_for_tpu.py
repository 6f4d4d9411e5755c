"""Command line: compile the training step for TPUs that this machine does not have.

    pip install -e .[tpu]
    python -m launch.compile_for_tpu --config=configs/cyclegan.py --topology=v5e:2x2

Any field of the configuration can be overridden, as in `mmsr_jax.main`, such as batch_size, which
is split over the devices of the topology, and compute_dtype=bfloat16. Nothing runs: the figures are
the compiler's, for one device and step. Its bytes are summed over all operations, whichever memory
they read, so that the time of the bytes is an upper bound. The compiler's own estimate of the time
comes out negative (libtpu 0.0.42) and is left out. Compiling takes minutes on two CPU cores.
"""

import os
from collections import Counter
from typing import Any, NamedTuple

from absl import app, flags

from data_pipelines.errors import UserError, reported_in_one_line
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU kind and chips, as v4:2x2x1, v6e:2x4.")
_HLO = flags.DEFINE_string("hlo", "", "File to write the compiled program to.")

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Chip(NamedTuple):
    """What its maker says of a chip, or of what JAX calls a device.

    Attributes:
      memory_gib: of the device.
      teraflops: a second, of bfloat16.
      gigabytes: a second, between memory and chip.
    """

    memory_gib: float
    teraflops: float
    gigabytes: float


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
CHIPS = {
    "v4": Chip(16, 137.5, 614),  # half a chip: its two cores are devices of their own
    "v5e": Chip(16, 197, 819),
    "v5p": Chip(95, 459, 2765),
    "v6e": Chip(32, 918, 1640),
}


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        config = chosen_config(_CONFIG, argv)
        kind = _TOPOLOGY.value.split(":")[0]
        if kind not in CHIPS:
            raise UserError(f"--topology={_TOPOLOGY.value}: {kind!r} is none of {', '.join(CHIPS)}")
        compiled, devices = _compile(config, _TOPOLOGY.value)
        pairs = config.batch_size / devices
        print(f"{_TOPOLOGY.value}: {devices} devices, {pairs:g} pairs a device and step")
        for name, value in figures(compiled, CHIPS[kind], pairs).items():
            print(f"{name:30s} {value}")
        if _HLO.value:
            with open(_HLO.value, "w") as file:
                file.write(compiled.as_text())


def figures(compiled: Any, chip: Chip, pairs: float) -> dict[str, str]:
    """What a compiled step of `pairs` pairs of patches asks of one device, in words by name."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    gflop, gigabytes = cost["flops"] / 1e9, cost["bytes accessed"] / 1e9
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    collectives = Counter(
        name
        for line in compiled.as_text().splitlines()
        for name in _COLLECTIVES
        if f" {name}(" in line or f" {name}-start(" in line
    )
    return {
        "memory": f"{needed / 2**30:.2f} of {chip.memory_gib:g} GiB",
        "of it temporary": f"{memory.temp_size_in_bytes / 2**30:.2f} GiB",
        "floating-point operations": f"{gflop:.0f} GFLOP, {gflop / pairs:.0f} a pair",
        "bytes accessed": f"{gigabytes:.2f} GB, {gigabytes / pairs:.2f} a pair",
        "time of the operations": f"{gflop / chip.teraflops:.2f} ms",
        "time of the bytes": f"{1e3 * gigabytes / chip.gigabytes:.2f} ms",
        "collectives": ", ".join(f"{n} {name}" for name, n in collectives.items()) or "none",
    }


def _compile(config: Any, topology_name: str) -> tuple[Any, int]:
    """The compiled training step, and the number of devices that it runs on."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu would ask the cloud for its machine
    import jax
    from jax.experimental import topologies

    from mmsr_jax import methods
    from mmsr_jax.config import check_config
    from mmsr_jax.mesh import data_mesh
    from mmsr_jax.train_state import batch_shapes, create_train_state
    from mmsr_jax.train_step import make_train_step

    jax.config.update("jax_platforms", "cpu")  # what is not compiled for the topology
    check_config(config)
    try:
        devices = topologies.get_topology_desc(topology_name, "tpu").devices
    except (RuntimeError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={topology_name}: {reason} (needs pip install -e .[tpu])"
        ) from error
    if config.batch_size % len(devices):
        raise UserError(
            f"config.batch_size={config.batch_size}: must be a multiple of the {len(devices)} "
            f"devices of {topology_name}"
        )
    method = methods.create(config)
    state = jax.eval_shape(lambda: create_train_state(config, method))
    step = make_train_step(config, method, data_mesh(devices))
    return step.lower(state, batch_shapes(config, config.batch_size)).compile(), len(devices)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
