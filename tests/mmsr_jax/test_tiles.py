import functools
from dataclasses import astuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_super_resolution
from scipy import ndimage

from mmsr_jax.inference.network import Network
from mmsr_jax.inference.tiles import Window, super_resolve_slices

METHODS = [
    *(("cyclegan", norm, up) for norm in ("pixel", "none") for up in ("nearest", "smooth")),
    ("cyclegan", "pixel", "shuffle"),
    ("cyclegan", "instance", "nearest"),
    *(("unit", norm, "shuffle") for norm in ("pixel", "none", "instance")),
    ("unit", "pixel", "nearest"),
]
LOCAL = [kind for kind in METHODS if kind[1] != "instance"]
# Compiles several times faster, for networks that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
SCALE = 2


def pictures(rows: int, columns: int, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(rows * 1000 + columns)
    return rng.uniform(-1, 1, (count, rows, columns)).astype(np.float32)


def whole(network: Network, images: np.ndarray) -> np.ndarray:
    """What the network gives for whole slices."""
    return np.asarray(network.tail(network.trunk(images[..., None])))[..., 0]


# Any network: filters of NumPy, which reach as far as their radius


def filtered(images: jax.Array | np.ndarray, radius: int) -> np.ndarray:
    """Correlation with random weights, reflected at the border."""
    weights = np.random.default_rng(radius).normal(size=(2 * radius + 1,) * 2)
    planes = np.asarray(images, np.float64)[..., 0]
    result = [ndimage.correlate(plane, weights, mode="mirror") for plane in planes]
    return np.stack(result)[..., None].astype(np.float32)


def filters(trunk: int, tail: int, shapes: set[tuple[int, ...]], less: float = 0) -> Network:
    """Two filters, each pixel then repeated; notes the shapes that the tail sees."""

    def tail_of(features: jax.Array) -> np.ndarray:
        shapes.add(features.shape)
        return np.kron(filtered(features, tail), np.ones((1, SCALE, SCALE, 1)))

    # A part of a pixel more or less asks for the whole pixel.
    reach = [max(radius - less, 0) for radius in (trunk, tail)]
    return Network(lambda images: filtered(images, trunk), tail_of, SCALE, *reach)


def some_window(data: st.DataObject, rows: int, columns: int) -> Window:
    ends = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        for n in (rows, columns)
    ]
    return Window(*ends[0], *ends[1])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile_px=st.integers(1, 45),
    trunk=st.integers(0, 3),
    tail=st.integers(0, 3),
    less=st.floats(0, 0.99),
    data=st.data(),
)
def test_tiles_equal_whole_slices_and_any_part_of_them(
    rows: int, columns: int, tile_px: int, trunk: int, tail: int, less: float, data: st.DataObject
) -> None:
    images, shapes = pictures(rows, columns, 2), set()
    network = filters(trunk, tail, shapes, less)
    expected = whole(network, images)
    shapes.clear()
    window = some_window(data, rows, columns)
    tiled = super_resolve_slices(network, images, tile_px=tile_px, window=window)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, window.of(expected, SCALE), atol=1e-4)
    ((n, height, width, channels),) = shapes  # tiles of several shapes compile several times
    assert (n, channels) == (2, 1)
    assert height <= tile_px + 2 * tail
    assert width <= tile_px + 2 * tail


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    tile_px=st.integers(1, 12),
    share=st.floats(0, 1),
)
def test_only_wanted_tiles_are_computed(
    rows: int, columns: int, tile_px: int, share: float
) -> None:
    images = pictures(rows, columns)
    network = filters(1, 1, set())
    wanted = np.random.default_rng(0).random((rows, columns)) < share**4
    tiled = super_resolve_slices(network, images, tile_px=tile_px, wanted=wanted)[0]
    fine = np.kron(wanted, np.ones((SCALE, SCALE), bool))
    np.testing.assert_allclose(tiled[fine], whole(network, images)[0][fine], atol=1e-4)
    corners = [(r, c) for r in range(0, rows, tile_px) for c in range(0, columns, tile_px)]
    for row, column in corners:
        tile = slice(row, row + tile_px), slice(column, column + tile_px)
        part = tiled[tuple(slice(SCALE * s.start, SCALE * s.stop) for s in tile)]
        assert np.isnan(part).all() == (not wanted[tile].any())


@pytest.mark.parametrize("radius", [1, 3])
def test_a_smaller_halo_would_be_noticed(radius: int) -> None:
    images, network = pictures(30, 23), filters(0, radius, set())
    short = filters(0, radius, set(), less=1)
    tiled = super_resolve_slices(short, images, tile_px=7)
    assert np.abs(tiled - whole(network, images)).max() > 0.01


def test_without_a_reach_the_slice_is_one_tile_and_a_window_is_cut_from_it() -> None:
    shapes: set[tuple[int, ...]] = set()
    network = Network(*astuple(filters(1, 2, shapes))[:2], SCALE, 0.0, None)
    images, window = pictures(30, 23), Window(4, 9, 3, 20)
    result = super_resolve_slices(network, images, tile_px=4, window=window)
    assert shapes == {(1, 30, 23, 1)}
    np.testing.assert_array_equal(result, window.of(whole(network, images), SCALE))


# The networks of the methods


@functools.cache
def network_of(method: str, norm: str, upsample: str, base: str = "none") -> Network:
    trunk, tail, *reach = random_super_resolution(method, norm, upsample, base, SCALE, "float32")
    trunk, tail = (jax.jit(part, compiler_options=FAST_COMPILATION) for part in (trunk, tail))
    return Network(trunk, tail, SCALE, *reach)


@pytest.mark.parametrize("kind", METHODS, ids="-".join)
def test_tiled_methods_equal_whole_slices_and_need_their_halo(kind: tuple[str, ...]) -> None:
    network, images = network_of(*kind), pictures(37, 29, 2)
    expected = whole(network, images)
    assert expected.std() > 0.01
    tiled = super_resolve_slices(network, images, tile_px=9)
    np.testing.assert_allclose(tiled, expected, atol=1e-5)
    assert network.tail_reach_px is not None
    short = Network(network.trunk, network.tail, SCALE, 0.0, network.tail_reach_px - 1)
    assert np.abs(super_resolve_slices(short, images, tile_px=9) - expected).max() > 1e-4


@pytest.mark.parametrize("kind", LOCAL, ids="-".join)
def test_fused_networks_equal_whole_slices(kind: tuple[str, ...]) -> None:
    network, images = network_of(*kind), pictures(37, 29)
    plain = Network(network.trunk.__wrapped__, network.tail.__wrapped__, *astuple(network)[2:])
    tiled = super_resolve_slices(plain.fused(), images, tile_px=9)
    np.testing.assert_allclose(tiled, whole(network, images), atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=16)
@given(
    kind=st.sampled_from(METHODS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile_px=st.integers(2, 24),
    data=st.data(),
)
def test_tiled_methods_on_slices_and_windows_of_any_size(
    kind: tuple[str, ...], rows: int, columns: int, tile_px: int, data: st.DataObject
) -> None:
    network, images = network_of(*kind), pictures(rows, columns)
    window = some_window(data, rows, columns)
    tiled = super_resolve_slices(network, images, tile_px=tile_px, window=window)
    np.testing.assert_allclose(tiled, window.of(whole(network, images), SCALE), atol=1e-5)


@pytest.mark.parametrize("base", ["bicubic", "consistent"])
@pytest.mark.parametrize("norm", ["pixel", "instance"])
def test_tiled_generator_with_a_base_equals_the_whole_slice(norm: str, base: str) -> None:
    network, images = network_of("cyclegan", norm, "nearest", base), pictures(90, 9)
    tiled = super_resolve_slices(network, images, tile_px=5)
    np.testing.assert_allclose(tiled, whole(network, images), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("kind", [METHODS[0], METHODS[-1]], ids="-".join)
def test_tiled_methods_on_slivers(kind: tuple[str, ...], shape: tuple[int, int]) -> None:
    network, images = network_of(*kind), pictures(*shape)
    tiled = super_resolve_slices(network, images, tile_px=4)
    assert tiled.shape == (1, SCALE * shape[0], SCALE * shape[1])
    np.testing.assert_allclose(tiled, whole(network, images), atol=1e-5)
