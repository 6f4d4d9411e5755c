import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mmsr_jax.inference.tiles import super_resolve_slice
from mmsr_jax.networks.generators import SrResnet

KINDS = [
    (norm, upsample) for norm in ("pixel", "none") for upsample in ("nearest", "smooth", "shuffle")
]
# Compiles several times faster, for networks that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
SCALE = 2


def picture(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(rows * 1000 + columns)
    return rng.uniform(-1, 1, (rows, columns)).astype(np.float32)


# Any network: one of NumPy, whose reach is its filter's radius


def filtering_network(radius: int, shapes: set[tuple[int, ...]]) -> Callable[..., np.ndarray]:
    """A random filter with reflection at the border, each pixel then repeated; notes its inputs."""
    weights = np.random.default_rng(0).normal(size=(2 * radius + 1,) * 2)

    def network(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        shapes.add(images.shape)
        filtered = ndimage.correlate(images[0, :, :, 0].astype(np.float64), weights, mode="mirror")
        fine = np.kron(filtered, np.ones((SCALE, SCALE)))
        return fine[None, :, :, None].astype(np.float32)

    return network


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile_px=st.integers(1, 45),
    radius=st.integers(0, 4),
    less=st.floats(0, 0.99),
)
def test_tiles_equal_the_whole_slice(
    rows: int, columns: int, tile_px: int, radius: int, less: float
) -> None:
    image, shapes = picture(rows, columns), set()
    network = filtering_network(radius, shapes)
    reach_px = max(radius - less, 0)  # a part of a pixel more or less asks for the whole pixel
    tiled = super_resolve_slice(network, image, scale=SCALE, reach_px=reach_px, tile_px=tile_px)
    assert len(shapes) == 1, "tiles of several shapes compile several times"
    ((n, height, width, channels),) = shapes
    assert (n, channels) == (1, 1)
    assert height <= tile_px + 2 * math.ceil(reach_px)
    assert width <= tile_px + 2 * math.ceil(reach_px)
    assert tiled.dtype == np.float32
    whole = network(image[None, :, :, None])[0, :, :, 0]
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("radius", [1, 3])
def test_a_smaller_halo_would_be_noticed(radius: int) -> None:
    image, network = picture(30, 23), filtering_network(radius, set())
    tiled = super_resolve_slice(network, image, scale=SCALE, reach_px=radius - 1, tile_px=7)
    whole = network(image[None, :, :, None])[0, :, :, 0]
    assert np.abs(tiled - whole).max() > 0.01


def test_without_a_reach_the_slice_is_one_tile() -> None:
    shapes: set[tuple[int, ...]] = set()
    image = picture(30, 23)
    network = filtering_network(2, shapes)
    result = super_resolve_slice(network, image, scale=SCALE, reach_px=None, tile_px=4)
    assert shapes == {(1, 30, 23, 1)}
    np.testing.assert_array_equal(result, network(image[None, :, :, None])[0, :, :, 0])


# The generator


@functools.cache
def sr_network(
    norm: str, upsample: str, base: str = "none"
) -> tuple[Callable[[np.ndarray], jax.Array], float | None]:
    """(compiled network, its reach), with random weights of NumPy."""

    def make() -> SrResnet:
        return SrResnet(
            channels=3,
            blocks=1,
            tail_channels=3,
            scale=SCALE,
            norm=norm,
            upsample=upsample,
            base=base,
            rngs=nnx.Rngs(0),
        )

    module = nnx.eval_shape(make)
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.05
        return jnp.asarray(rng.normal(0, spread, leaf.shape).astype(leaf.dtype))

    state = jax.tree.map(values, state)
    network = jax.jit(
        lambda images: nnx.merge(graph, state)(images), compiler_options=FAST_COMPILATION
    )
    return network, module.reach_px


def tiled_and_whole(
    kind: tuple[str, ...], image: np.ndarray, tile_px: int, *, missing_px: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    network, reach_px = sr_network(*kind)
    assert reach_px is not None
    tiled = super_resolve_slice(
        network, image, scale=SCALE, reach_px=reach_px - missing_px, tile_px=tile_px
    )
    return tiled, np.asarray(network(image[None, :, :, None]))[0, :, :, 0]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_tiled_generator_equals_the_whole_slice_and_needs_its_halo(kind: tuple[str, str]) -> None:
    image = picture(37, 29)
    tiled, whole = tiled_and_whole(kind, image, 9)
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    short, _ = tiled_and_whole(kind, image, 9, missing_px=2)
    assert np.abs(short - whole).max() > 1e-4 * whole.std()


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile_px=st.integers(2, 24),
)
def test_tiled_generator_equals_slices_of_any_size(
    kind: tuple[str, str], rows: int, columns: int, tile_px: int
) -> None:
    tiled, whole = tiled_and_whole(kind, picture(rows, columns), tile_px)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("base", ["bicubic", "consistent"])
def test_tiled_generator_with_a_base_equals_the_whole_slice(base: str) -> None:
    tiled, whole = tiled_and_whole(("pixel", "nearest", base), picture(90, 9), 5)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (1, 40), (40, 1)])
def test_tiled_generator_on_slivers(shape: tuple[int, int]) -> None:
    tiled, whole = tiled_and_whole(("pixel", "nearest"), picture(*shape), 4)
    assert tiled.shape == (SCALE * shape[0], SCALE * shape[1])
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_instance_norm_takes_the_whole_slice() -> None:
    network, reach_px = sr_network("instance", "nearest")
    assert reach_px is None
    image = picture(37, 29)
    result = super_resolve_slice(network, image, scale=SCALE, reach_px=reach_px, tile_px=9)
    np.testing.assert_array_equal(result, np.asarray(network(image[None, :, :, None]))[0, :, :, 0])
