import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_jax.networks.convolution import convolve, depth_to_space, space_to_depth

# Kernel size and stride, channels in and out: every way of computing it on a CPU.
LAYERS = [
    (2, 1, 16, 24),
    (3, 1, 64, 72),
    (4, 1, 80, 64),
    (4, 2, 16, 64),
    (4, 2, 5, 17),
    (3, 1, 5, 7),
    (4, 2, 3, 6),
    (3, 2, 4, 5),
    (2, 1, 6, 4),
    (1, 1, 4, 1),
    (7, 1, 1, 6),
    (7, 1, 6, 1),
    (4, 1, 5, 1),
]


def convolved(images: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """In double precision, by NumPy."""
    size = kernel.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(
        images.astype(np.float64), (size, size), axis=(1, 2)
    )[:, ::stride, ::stride]
    return np.einsum("nhwiyx,yxio->nhwo", windows, kernel.astype(np.float64))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(LAYERS),
    st.integers(1, 3),
    st.tuples(st.integers(7, 38), st.integers(7, 38)),
    st.integers(0, 999),
)
def test_sums_and_gradients(
    layer: tuple[int, int, int, int], n: int, shape: tuple[int, int], seed: int
) -> None:
    size, stride, *channels = layer
    images, kernel = random(seed, n, *shape, channels[0]), random(seed + 1, size, size, *channels)
    kernel /= size * channels[0] ** 0.5
    expected = convolved(images, kernel, stride)
    result, pull_back = jax.vjp(lambda *inputs: convolve(*inputs, stride), images, kernel)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)

    # The gradients by what they mean: how the sum changes in a random direction.
    weights = random(seed + 2, *expected.shape)
    by_images, by_kernel = map(np.asarray, pull_back(jnp.asarray(weights)))
    some_images, some_kernel = random(seed + 3, *images.shape), random(seed + 4, *kernel.shape)
    for gradient, direction, change in (
        (by_images, some_images, convolved(some_images, kernel, stride)),
        (by_kernel, some_kernel, convolved(images, some_kernel, stride)),
    ):
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        found = np.sum(gradient.astype(np.float64) * direction)
        assert abs(found - np.sum(weights * change)) < 1e-5 * scale


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if 1 not in layer[2:]])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_chips_get_plain_convolutions(
    layer: tuple[int, int, int, int], platform: str
) -> None:
    size, stride, *channels = layer

    def gradients(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        result, pull_back = jax.vjp(lambda *inputs: convolve(*inputs, stride), images, kernel)
        return (result, *pull_back(result))

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((2, 34, 34, channels[0]), (size, size, *channels))
    ]
    program = jax.jit(gradients).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == 3
    assert "dot_general" not in program


def test_blocks_to_channels_and_back() -> None:
    images = random(0, 2, 6, 10, 3)
    blocks = np.asarray(space_to_depth(images))
    np.testing.assert_array_equal(blocks[1, 2, 4], images[1, 4:6, 8:10].ravel())
    np.testing.assert_array_equal(depth_to_space(blocks), images)
