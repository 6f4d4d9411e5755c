"""What a TPU computes in blocks of pixels, against what other chips compute on pixels."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_jax.networks.across_scales import convolve_image, downsample, upsample_to_image
from mmsr_jax.networks.blocks import Conv, ImageHead, UpsampleBlock
from mmsr_jax.networks.in_blocks import regroup

OPTIONS: dict[str, Any] = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def random_bias(layer: Conv | UpsampleBlock | ImageHead) -> Any:
    convs = [node for _, node in nnx.iter_graph(layer) if isinstance(node, nnx.Conv)]
    for conv in convs:
        conv.bias[...] = random(*conv.bias.shape)
    return layer


@pytest.fixture
def as_on_tpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Callable]:
    def as_on_tpu(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with monkeypatch.context() as patched:
                patched.setattr(
                    "mmsr_jax.networks.across_scales.lax.platform_dependent",
                    lambda *inputs, default, **ways: ways.get("tpu", default)(*inputs),
                )
                return function(*arguments)

        return call

    return as_on_tpu


def assert_same(function: Callable[..., jax.Array], other: Callable, *inputs: jax.Array) -> None:
    """Values and gradients, to rounding."""
    result, pull_back = jax.vjp(function, *inputs)
    expected, other_pull_back = jax.vjp(other, *inputs)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    cotangent = random(*expected.shape)
    for found, wanted in zip(pull_back(cotangent), other_pull_back(cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["nearest", "smooth", "shuffle"])
@pytest.mark.parametrize("widths", [(6, 5), (40, 32, 16, 8), (8, 4, 2, 1)])
def test_upsampling(as_on_tpu: Callable, kind: Any, widths: tuple[int, ...]) -> None:
    layers = [
        random_bias(UpsampleBlock(a, b, kind=kind, **OPTIONS))
        for a, b in itertools.pairwise(widths)
    ]
    head = random_bias(ImageHead(widths[-1], **OPTIONS))

    def image(features: jax.Array) -> jax.Array:
        return upsample_to_image(features, layers, head)

    assert_same(as_on_tpu(image), image, random(2, 8, 11, widths[0]))


@pytest.mark.parametrize("widths", [(3, 4), (3, 6, 5)])
def test_downsampling(as_on_tpu: Callable, widths: tuple[int, ...]) -> None:
    stem = random_bias(Conv(1, widths[0], 7, padding=3, **OPTIONS))
    strided = [
        random_bias(Conv(a, b, 4, stride=2, padding=1, **OPTIONS))
        for a, b in itertools.pairwise(widths)
    ]

    def features(images: jax.Array) -> jax.Array:
        return downsample(images, stem, strided)

    assert_same(as_on_tpu(features), features, random(2, 16, 12, 1))


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_first_layer_of_a_discriminator(as_on_tpu: Callable, pad_mode: Any) -> None:
    conv = random_bias(Conv(1, 6, 4, stride=2, padding=1, pad_mode=pad_mode, **OPTIONS))
    for side in (10, 9):  # an odd side has no whole blocks

        def features(images: jax.Array) -> jax.Array:
            return convolve_image(images, conv)

        assert_same(as_on_tpu(features), features, random(2, side, 12, 1))


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_regrouped_blocks_hold_the_same_pixels(block_px: int, wanted_px: int, n: int) -> None:
    image = np.arange(n * 8 * 12 * 3).reshape(n, 8, 12, 3)
    regrouped = np.asarray(regroup(regroup(jnp.asarray(image), 1, block_px), block_px, wanted_px))
    row, column = 5, 10
    pixel = regrouped[:, row // wanted_px, column // wanted_px].reshape(n, wanted_px, wanted_px, 3)
    np.testing.assert_array_equal(
        pixel[:, row % wanted_px, column % wanted_px], image[:, row, column]
    )


def test_a_tpu_gets_blocks_that_fill_its_lanes() -> None:
    layers = [UpsampleBlock(a, b, kind="nearest", **OPTIONS) for a, b in ((64, 32), (32, 16))]
    head = ImageHead(16, **OPTIONS)
    program = jax.jit(lambda features: upsample_to_image(features, layers, head)).trace(
        jax.ShapeDtypeStruct((1, 32, 32, 64), jnp.float32)
    )
    tpu, gpu = (
        program.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cuda")
    )
    assert "tensor<1x32x32x256xf32>" in tpu  # 16 channels of 4 × 4 pixels
    assert "tensor<1x128x128x16xf32>" not in tpu
    assert "tensor<1x128x128x16xf32>" in gpu
