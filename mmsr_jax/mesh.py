"""The one mesh of a run: all devices of all processes along one axis, "data"."""

from collections.abc import Sequence

import jax
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Every device, or those given, along the axis "data"."""
    count = len(devices) if devices else jax.device_count()
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> Sharding:
    """The same value on every device."""
    return _sharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> Sharding:
    """The first axis split over the devices."""
    return _sharding(mesh, PartitionSpec("data"))


def _sharding(mesh: Mesh, spec: PartitionSpec) -> Sharding:
    # XLA compiles a NamedSharding over one CPU device through its partitioner, which makes the
    # training step about thirty times slower (jaxlib 0.10.2).
    if mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.item())
    return NamedSharding(mesh, spec)
