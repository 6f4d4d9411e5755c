"""Command line: compile training or super-resolution for TPUs that this machine does not have.

    pip install -e .[tpu]
    python -m launch.compile_for_tpu --config=configs/cyclegan.py --topology=v5e:4x4

Any field of the configuration can be overridden, as in `mmsr_jax.main`, such as batch_size, which
is split over the devices of the topology, and compute_dtype=bfloat16. Nothing runs: the figures are
the compiler's, for one device and step. Its bytes are summed over all operations, whichever memory
they read, so that the time of the bytes is an upper bound. Its own estimate of the time came out
negative in every trial (libtpu 0.0.42). Compiling takes minutes on two CPU cores. What does not fit
the memory of a device ends with the largest arrays.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import app, flags

from data_pipelines.errors import UserError, reported_in_one_line
from mmsr_jax.config import check_config
from mmsr_jax.config_flag import chosen_config, define_config, parse_flags

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU kind and chips, as v4:2x2x1, v6e:2x4.")
_PROGRAM = flags.DEFINE_enum("program", "train_step", ["train_step", "super_resolution"], "Which.")
_HLO = flags.DEFINE_string("hlo", "", "File to write the compiled program to.")

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SLICE_PX, _TILE_PX = 512, 256  # of super-resolution: a slice, and a tile without its halo
_NAMED_ARRAYS = 5


class Chip(NamedTuple):
    """What its maker says of a chip.

    Attributes:
      memory_gib: of the device.
      teraflops: a second, of bfloat16.
      gigabytes: a second, between memory and chip.
      links_gigabytes: a second, to all neighbours together, one way.
      options: of the topology, so that a device is a whole chip.
    """

    memory_gib: float
    teraflops: float
    gigabytes: float
    links_gigabytes: float
    options: dict[str, str]


# https://docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, read in November 2026
CHIPS = {
    "v4": Chip(32, 275, 1200, 300, {"chip_config_name": "megacore"}),
    "v5e": Chip(16, 197, 819, 200, {}),
    "v5p": Chip(95, 459, 2765, 600, {}),
    "v6e": Chip(32, 918, 1600, 400, {}),
}


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        config = chosen_config(_CONFIG, argv)
        check_config(config)
        kind = _TOPOLOGY.value.split(":")[0]
        if kind not in CHIPS:
            raise UserError(f"--topology={_TOPOLOGY.value}: {kind!r} is none of {', '.join(CHIPS)}")
        devices = _devices(_TOPOLOGY.value, CHIPS[kind])
        lower = _train_step if _PROGRAM.value == "train_step" else _super_resolution
        for title, traced, images in lower(config, devices):
            compiled = _compiled(title, traced)
            print(f"{_TOPOLOGY.value}, {len(devices)} devices: {title}")
            for name, value in figures(compiled, CHIPS[kind], images, len(devices)).items():
                print(f"{name:30s} {value}")
            if _HLO.value:
                with open(_HLO.value, "w") as file:
                    file.write(compiled.as_text())


def figures(compiled: Any, chip: Chip, images: float, devices: int = 1) -> dict[str, str]:
    """What a compiled program asks of one device, in words by name.

    Args:
      compiled: of JAX.
      chip: the device.
      images: pairs of patches, or slices, that a device computes.
      devices: that take part in the collectives.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    gflop, gigabytes = cost["flops"] / 1e9, cost["bytes accessed"] / 1e9
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    counts, exchanged = collectives(compiled.as_text())
    busy_ms = max(gflop / chip.teraflops, 1e3 * gigabytes / chip.gigabytes)
    # Around a ring every byte of a sum passes twice, but for the share that is there already.
    links_ms = 1e-6 * exchanged * 2 * (devices - 1) / devices / chip.links_gigabytes
    return {
        "memory": f"{needed / 2**30:.2f} of {chip.memory_gib:g} GiB",
        "of it temporary": f"{memory.temp_size_in_bytes / 2**30:.2f} GiB",
        "floating-point operations": f"{gflop:.0f} GFLOP, {gflop / images:.0f} an image",
        "bytes accessed": f"{gigabytes:.2f} GB, {gigabytes / images:.2f} an image",
        "time of the operations": f"{gflop / chip.teraflops:.2f} ms",
        "time of the bytes": f"{1e3 * gigabytes / chip.gigabytes:.2f} ms",
        "compiler's estimate": f"{1e3 * cost.get('optimal_seconds', math.nan):.2f} ms",
        "collectives": ", ".join(f"{n} {name}" for name, n in counts.items()) or "none",
        "bytes of the collectives": f"{exchanged / 1e6:.1f} MB",
        "time of the collectives": f"{links_ms:.2f} ms",
        "efficiency if they wait": f"{busy_ms / (busy_ms + links_ms):.1%}",
    }


def collectives(program: str) -> tuple[Counter[str], int]:
    """How many of each kind a compiled program has, and the bytes that they give together."""
    counts: Counter[str] = Counter()
    exchanged, kinds = 0, "|".join(_COLLECTIVES)
    for line in re.sub(r"/\*.*?\*/", "", program).splitlines():  # /*index=5*/ in long tuples
        found = re.search(rf"= (\([^=]*\)|\S+) ({kinds})(-start)?\(", line)
        if found:
            counts[found[2]] += 1
            exchanged += _bytes_of(found[1])
    return counts, exchanged


def _bytes_of(types: str) -> int:
    """Of arrays in the notation of XLA, as f32[8,16]."""
    return sum(
        int(bits or 8) // 8 * math.prod(int(side) for side in sides.split(",") if side)
        for bits, sides in re.findall(r"\b[a-z]+?(\d*)\[([\d,]*)\]", types)
    )


def _devices(topology: str, chip: Chip) -> Any:
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu would ask the cloud for its machine
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # what is not compiled for the topology
    try:
        return topologies.get_topology_desc(topology, "tpu", **chip.options).devices
    except (RuntimeError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology}: {reason} (needs pip install -e .[tpu])") from error


Program = tuple[str, Any, float]  # its title, traced, and the images of a device


def _train_step(config: Any, devices: Any) -> Iterator[Program]:
    import jax

    from mmsr_jax import methods
    from mmsr_jax.mesh import data_mesh
    from mmsr_jax.train_state import batch_shapes, create_train_state
    from mmsr_jax.train_step import make_train_step

    if config.batch_size % len(devices):
        raise UserError(
            f"config.batch_size={config.batch_size}: must be a multiple of the {len(devices)} "
            f"devices of {_TOPOLOGY.value}"
        )
    method = methods.create(config)
    state = jax.eval_shape(lambda: create_train_state(config, method))
    step = make_train_step(config, method, data_mesh(devices))
    pairs = config.batch_size / len(devices)
    title = f"{config.method}, {pairs:g} pairs of patches a device"
    yield title, step.trace(state, batch_shapes(config, config.batch_size)), pairs


def _super_resolution(config: Any, devices: Any) -> Iterator[Program]:
    """Both parts, as of one slice on one device: a whole slice to features, a tile of them on."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from mmsr_jax import methods
    from mmsr_jax.inference.tiles import halo_px

    method = methods.create(config)
    trunk, tail, _, tail_reach_px = method.super_resolution
    params = jax.eval_shape(method.init, jax.random.key(0))
    scan = jax.ShapeDtypeStruct((1, _SLICE_PX, _SLICE_PX, 1), jnp.float32)
    features = jax.eval_shape(trunk, params, scan)
    side = _SLICE_PX if tail_reach_px is None else _TILE_PX + 2 * halo_px(tail_reach_px)
    tile = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, side, side, leaf.shape[3]), leaf.dtype), features
    )
    here = SingleDeviceSharding(devices[0])
    for title, part, images in (
        (f"{config.method}, trunk of a slice of {_SLICE_PX} px", trunk, scan),
        (f"{config.method}, tail of a tile of {side} px with its halo", tail, tile),
    ):
        yield title, jax.jit(part, in_shardings=here, out_shardings=here).trace(params, images), 1


def _compiled(title: str, traced: Any) -> Any:
    import jax

    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise UserError(
            f"{title}: {reason} The largest arrays, of all devices together: "
            f"{'; '.join(largest_arrays(traced.jaxpr))}. Use a smaller batch or config.remat=true"
        ) from error


def largest_arrays(program: Any) -> list[str]:
    """The largest arrays that a traced program makes, each kind once, in words."""
    found: Counter[tuple[int, str, str]] = Counter()
    for equation in _equations(program.jaxpr):
        for variable in equation.outvars:
            array = variable.aval
            if hasattr(array, "dtype") and hasattr(array.dtype, "itemsize"):
                size = math.prod(array.shape) * array.dtype.itemsize
                found[size, array.str_short(), equation.primitive.name] += 1
    largest = sorted(found.items(), key=lambda item: -item[0][0])[:_NAMED_ARRAYS]
    return [
        f"{count} of {kind} by {primitive}, {size / 2**20:.0f} MiB each"
        for (size, kind, primitive), count in largest
    ]


def _equations(program: Any) -> Iterator[Any]:
    """Those that compute, also within calls and loops."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    for equation in program.eqns:
        inner = [
            part.jaxpr if isinstance(part, ClosedJaxpr) else part
            for value in equation.params.values()
            for part in (value if isinstance(value, tuple) else (value,))
            if isinstance(part, ClosedJaxpr | Jaxpr)
        ]
        if not inner:
            yield equation
        for part in inner:
            yield from _equations(part)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
