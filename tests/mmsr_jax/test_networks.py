import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from scipy import ndimage

from mmsr_jax.networks import discriminators
from mmsr_jax.networks.blocks import Conv, ResidualBlock, UpsampleBlock, leaky_relu, normalise
from mmsr_jax.networks.discriminators import PatchDiscriminator
from mmsr_jax.networks.generators import DownResnet, SrResnet

UPSAMPLES = ["nearest", "smooth", "shuffle"]
DTYPES = [jnp.float32, jnp.bfloat16]
FLOAT32 = jnp.dtype(jnp.float32)
# Compiles several times faster, for networks that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
Network = Callable[[np.ndarray], jax.Array]


def images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def sr_resnet(**options) -> SrResnet:
    default = {
        "channels": 4,
        "blocks": 1,
        "tail_channels": 4,
        "scale": 4,
        "norm": "pixel",
        "upsample": "nearest",
        "rngs": nnx.Rngs(0),
    }
    return SrResnet(**(default | options))


def down_resnet(**options) -> DownResnet:
    default = {"channels": 2, "blocks": 1, "scale": 4, "norm": "pixel", "rngs": nnx.Rngs(0)}
    return DownResnet(**(default | options))


def discriminator(**options) -> PatchDiscriminator:
    default = {"channels": 4, "max_channels": 8, "strided": 2, "rngs": nnx.Rngs(0)}
    return PatchDiscriminator(**(default | options))


def weighted(make: Callable[[], nnx.Module]) -> nnx.Module:
    """The module with He-distributed weights and small biases of NumPy, which compiles nothing."""
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.05
        return jnp.asarray(rng.normal(0, spread, leaf.shape).astype(leaf.dtype))

    return nnx.merge(graph, jax.tree.map(values, state))


def compiled(module: nnx.Module) -> Network:
    graph, state = nnx.split(module)
    apply = jax.jit(
        lambda state, images: nnx.merge(graph, state)(images), compiler_options=FAST_COMPILATION
    )
    return functools.partial(apply, state)


def shape_only(make: Callable[[], nnx.Module], *shape: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what the module makes of a float32 batch, with nothing computed."""
    return jax.eval_shape(lambda x: make()(x), jax.ShapeDtypeStruct(shape, jnp.float32))


def parameter_count(make: Callable[[], nnx.Module]) -> int:
    shapes = jax.tree.leaves(nnx.state(nnx.eval_shape(make)))
    return sum(math.prod(leaf.shape) for leaf in shapes)


# Size and shape


@pytest.mark.parametrize(
    ("upsample", "count"), [("nearest", 729_473), ("smooth", 729_473), ("shuffle", 802_217)]
)
def test_parameters_of_sr_resnet(upsample: str, count: int) -> None:
    size = {"channels": 64, "blocks": 9, "tail_channels": 32, "scale": 8}
    assert parameter_count(lambda: sr_resnet(**size, upsample=upsample)) == count


def test_parameters_of_down_resnet() -> None:
    assert parameter_count(lambda: down_resnet(channels=32, blocks=6, scale=8)) == 2_205_185


@pytest.mark.parametrize(("strided", "count"), [(3, 2_762_689), (2, 660_929)])
def test_parameters_of_discriminator(strided: int, count: int) -> None:
    def make() -> PatchDiscriminator:
        return PatchDiscriminator(channels=64, max_channels=512, strided=strided, rngs=nnx.Rngs(0))

    assert parameter_count(make) == count


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_shapes_of_generators(scale: int, upsample: str) -> None:
    sr = shape_only(lambda: sr_resnet(scale=scale, upsample=upsample), 2, 6, 9, 1)
    assert sr.shape == (2, 6 * scale, 9 * scale, 1)
    assert shape_only(lambda: down_resnet(scale=scale), *sr.shape).shape == (2, 6, 9, 1)


@pytest.mark.parametrize(
    ("strided", "size", "scores"),
    [
        (3, (256, 256), (30, 30)),
        (2, (32, 40), (6, 8)),
        (3, (24, 24), (1, 1)),  # the smallest patches that the configuration allows
        (2, (12, 12), (1, 1)),
    ],
)
def test_shape_of_discriminator(
    strided: int, size: tuple[int, int], scores: tuple[int, int]
) -> None:
    result = shape_only(lambda: discriminator(strided=strided), 2, *size, 1)
    assert result.shape == (2, *scores, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["pixel", "instance", "none"])
def test_generators_give_float32_from_float32_parameters(norm: str, dtype) -> None:
    def generators() -> list[nnx.Module]:
        options = {"norm": norm, "dtype": dtype}
        return [sr_resnet(**options), down_resnet(**options)]

    for index in (0, 1):
        state = nnx.state(nnx.eval_shape(lambda index=index: generators()[index]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {FLOAT32}
        assert shape_only(lambda index=index: generators()[index], 1, 8, 8, 1).dtype == FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
def test_discriminator_scores_in_float32_from_float32_parameters(dtype) -> None:
    def make() -> PatchDiscriminator:
        return discriminator(dtype=dtype)

    state = nnx.state(nnx.eval_shape(make))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {FLOAT32}
    assert shape_only(make, 1, 24, 24, 1).dtype == FLOAT32


def test_images_stay_within_their_range() -> None:
    clinical = images(0, 1, 6, 8, 1)
    module = weighted(sr_resnet)
    head = module.head.conv.conv
    head.kernel[...] = 1e4 * head.kernel[...]
    result = compiled(module)(clinical)
    assert float(result.max()) == 1
    assert float(result.min()) == -1


def test_bfloat16_computes_in_bfloat16() -> None:
    clinical = images(0, 1, 6, 8, 1)
    full, half = (
        compiled(weighted(lambda dtype=dtype: sr_resnet(dtype=dtype)))(clinical) for dtype in DTYPES
    )
    assert float(full.std()) > 0.01
    assert 1e-5 < float(jnp.abs(full - half).max()) < 0.05


@pytest.mark.parametrize("scale", [1, 3, 6, 0])
def test_scale_must_be_a_power_of_two(scale: int) -> None:
    with pytest.raises(ValueError, match=f"scale={scale}"):
        nnx.eval_shape(lambda: sr_resnet(scale=scale))


def test_unknown_kinds_are_rejected() -> None:
    with pytest.raises(ValueError, match="upsample='bilinear'"):
        nnx.eval_shape(lambda: sr_resnet(upsample="bilinear"))
    with pytest.raises(ValueError, match="base='nearest'"):
        nnx.eval_shape(lambda: sr_resnet(base="nearest"))
    with pytest.raises(ValueError, match="norm='batch'"):
        normalise(jnp.zeros((1, 2, 2, 1)), "batch")


# Normalisation


def test_instance_norm_is_exact_where_the_mean_is_large() -> None:
    rng = np.random.default_rng(2)
    features = (100 + 0.01 * rng.normal(size=(2, 16, 24, 3))).astype(np.float32)
    exact = features.astype(np.float64)
    exact -= exact.mean(axis=(1, 2), keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis=(1, 2), keepdims=True) + 1e-5)
    assert 0.9 < exact.std() < 1
    np.testing.assert_allclose(normalise(features, "instance"), exact, atol=5e-3)


def test_pixel_norm_matches_numpy() -> None:
    features = images(3, 2, 5, 7, 6) * np.array([1e-4, 1.0, 50.0])[None, None, None].repeat(2, -1)
    features = features.astype(np.float32)
    features[0, 0, 0] = 0
    exact = features.astype(np.float64)
    exact /= np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-6)
    result = np.asarray(normalise(features, "pixel"))
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-7)
    assert (result[0, 0, 0] == 0).all()


def test_no_norm_changes_nothing() -> None:
    features = images(4, 1, 3, 3, 2)
    np.testing.assert_array_equal(normalise(features, "none"), features)


@pytest.mark.parametrize("norm", ["pixel", "instance"])
def test_norms_of_bfloat16_are_computed_in_float32(norm: str) -> None:
    features = jnp.asarray(3 + images(5, 1, 8, 8, 4), jnp.bfloat16)
    result = normalise(features, norm)
    assert result.dtype == jnp.bfloat16
    exact = normalise(features.astype(jnp.float32), norm).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(result, np.float32), np.asarray(exact, np.float32))


def test_residual_without_norm_is_a_tenth() -> None:
    options = {"norm": "none", "dtype": jnp.float32}
    block = weighted(lambda: ResidualBlock(2, **options, rngs=nnx.Rngs(0)))
    features = jnp.asarray(images(6, 1, 6, 6, 2))
    residual = block.second(leaky_relu(block.first(features)))
    np.testing.assert_allclose(block(features), features + 0.1 * residual, atol=1e-6)


def test_absolute_intensity_survives_sr_resnet() -> None:
    network = compiled(weighted(sr_resnet))
    clinical = 0.5 * images(7, 1, 16, 16, 1)
    lower, higher = network(clinical), network(clinical + 0.2)
    assert float(jnp.abs(higher - lower).mean()) > 0.1 * float(lower.std())
    assert abs(float((higher - lower).mean())) > 1e-3


# Locality: what tiles rely on


@pytest.mark.parametrize(("scale", "norm"), [(2, "pixel"), (2, "none"), (4, "pixel")])
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_a_pixel_reaches_as_far_as_reach_px_says(scale: int, upsample: str, norm: str) -> None:
    module = weighted(lambda: sr_resnet(scale=scale, upsample=upsample, norm=norm))
    reach = module.trunk_reach_px + module.tail_reach_px
    network, at = compiled(module), np.array([11, 13])
    clinical = images(8, 1, 24, 26, 1)
    changed = clinical.copy()
    changed[0, at[0], at[1], 0] *= -1
    difference = np.asarray(network(changed) - network(clinical))[0, :, :, 0]
    touched = np.argwhere(difference != 0)
    before = at - touched.min(axis=0) / scale
    beyond = (touched.max(axis=0) + 1) / scale - (at + 1)
    for distance in (*before, *beyond):
        assert reach - 1 < distance < reach + 1 / scale
    assert (at - math.ceil(reach) > 0).all(), "the image must be larger than the reach"


def test_reach_of_the_paper_sized_network() -> None:
    size = {"channels": 64, "blocks": 9, "tail_channels": 32, "scale": 8}
    reach = {
        upsample: nnx.eval_shape(lambda upsample=upsample: sr_resnet(**size, upsample=upsample))
        for upsample in UPSAMPLES
    }
    # 3 of the stem, 9 · 2, 1 before the tail, the tail, 3/8 of the head
    assert {network.trunk_reach_px for network in reach.values()} == {22}
    assert reach["shuffle"].tail_reach_px == (1 + 1 / 2 + 1 / 4) + 3 / 8
    assert reach["smooth"].tail_reach_px == (1 + 1 / 2 + 1 / 4) + 3 / 8
    assert reach["nearest"].tail_reach_px == (1 / 2 + 1 / 4 + 1 / 8) + 3 / 8


def test_instance_norm_sees_the_whole_image() -> None:
    module = weighted(lambda: sr_resnet(norm="instance"))
    assert module.trunk_reach_px is None
    assert module.tail_reach_px < 3
    network = compiled(module)
    clinical = images(8, 1, 24, 26, 1)
    changed = clinical.copy()
    changed[0, 0, 0, 0] *= -1
    assert float(jnp.abs(network(changed) - network(clinical))[0, -1, -1, 0]) > 0


@pytest.mark.parametrize(("strided", "field_px"), [(3, 70), (2, 34)])
def test_receptive_field_of_discriminator(
    strided: int, field_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discriminators, "normalise", lambda features, norm: features)
    module = weighted(lambda: discriminator(strided=strided))
    batch = jnp.asarray(images(9, 1, 112, 112, 1))
    scores = jax.eval_shape(module, batch)
    centre = (0, scores.shape[1] // 2, scores.shape[2] // 2, 0)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: module(x)[centre]))(batch))[0, :, :, 0]
    for axis in (0, 1):
        seen = np.flatnonzero(np.abs(gradient).max(axis=1 - axis))
        assert np.ptp(seen) + 1 == field_px
        assert seen[0] > 0
        assert seen[-1] < 111


def test_first_discriminator_layer_has_no_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        discriminators, "normalise", lambda features, norm: seen.append(norm) or features
    )
    shape_only(lambda: discriminator(strided=3), 1, 64, 64, 1)
    assert seen == ["instance"] * 3


# Upsampling


def upsample_block(kind: str) -> UpsampleBlock:
    return weighted(lambda: UpsampleBlock(1, 1, kind=kind, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def upsample_by_identity(kind: str, features: np.ndarray) -> np.ndarray:
    """The block with convolutions that only copy the one channel."""
    block = upsample_block(kind)
    kernel = np.zeros(block.conv.conv.kernel.shape, np.float32)
    kernel[1, 1, 0] = 1
    block.conv.conv.kernel[...] = jnp.asarray(kernel)
    block.conv.conv.bias[...] = jnp.zeros(kernel.shape[-1])
    return np.asarray(block(features[None, :, :, None]))[0, :, :, 0]


def test_nearest_and_shuffle_repeat_pixels() -> None:
    features = 1 + images(10, 4, 5)
    for kind in ("nearest", "shuffle"):
        np.testing.assert_allclose(
            upsample_by_identity(kind, features), np.kron(features, np.ones((2, 2))), rtol=1e-6
        )


def test_smooth_is_a_binomial_low_pass_of_repeated_pixels() -> None:
    features = 1 + images(11, 4, 5)
    expected = np.kron(features, np.ones((2, 2)))
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="nearest")
    np.testing.assert_allclose(upsample_by_identity("smooth", features), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 5), (1, 3)])
@pytest.mark.parametrize("kind", ["nearest", "smooth"])
def test_upsampling_before_a_convolution(kind: str, shape: tuple[int, int], dtype) -> None:
    block = weighted(lambda: UpsampleBlock(3, 2, kind=kind, dtype=dtype, rngs=nnx.Rngs(0)))
    features = images(19, 2, *shape, 3)
    extended = np.pad(features, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    upsampled = np.kron(extended, np.ones((1, 2, 2, 1), np.float32))
    if kind == "smooth":
        for axis in (1, 2):
            upsampled = ndimage.correlate1d(upsampled, [0.25, 0.5, 0.25], axis=axis)
    padded = upsampled[:, 3:-3, 3:-3]
    kernel, bias = (
        np.asarray(leaf[...]) for leaf in (block.conv.conv.kernel, block.conv.conv.bias)
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    sums = np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias
    expected = np.where(sums > 0, sums, 0.2 * sums)
    result = block(jnp.asarray(features, dtype))
    assert result.dtype == dtype
    atol = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, atol=atol)


def test_shuffle_puts_channels_into_their_places() -> None:
    block = upsample_block("shuffle")
    block.conv.conv.kernel[...] = jnp.zeros_like(block.conv.conv.kernel[...])
    block.conv.conv.bias[...] = jnp.arange(1.0, 5.0)
    result = block(jnp.zeros((1, 2, 3, 1)))[0, :, :, 0]
    np.testing.assert_allclose(result, np.tile([[1.0, 2.0], [3.0, 4.0]], (2, 3)))


def test_shuffle_starts_as_nearest() -> None:
    def initial(features: jax.Array) -> jax.Array:
        return UpsampleBlock(3, 5, kind="shuffle", dtype=jnp.float32, rngs=nnx.Rngs(0))(features)

    result = np.asarray(jax.jit(initial)(images(12, 2, 4, 6, 3)))
    assert result.shape == (2, 8, 12, 5)
    blocks = result.reshape(2, 4, 2, 6, 2, 5)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    assert blocks[:, :, 0, :, 0].std() > 0.1


@pytest.mark.parametrize("upsample", ["nearest", "smooth"])
def test_a_constant_scan_becomes_a_constant_image(upsample: str) -> None:
    network = compiled(weighted(lambda: sr_resnet(upsample=upsample)))
    result = network(np.full((1, 6, 8, 1), 0.3, np.float32))
    assert float(jnp.abs(result).max()) > 1e-3
    np.testing.assert_allclose(result, np.full(result.shape, result[0, 9, 9, 0]), atol=1e-6)


@pytest.mark.parametrize("network", [*UPSAMPLES, "down"])
def test_networks_do_not_shift_images(network: str) -> None:
    """With mirror-symmetric kernels, a network without a shift commutes with mirroring."""
    down = network == "down"
    make = down_resnet if down else functools.partial(sr_resnet, upsample=network)
    graph, state = nnx.split(weighted(make))

    def symmetric(path: tuple, leaf: jax.Array) -> jax.Array:
        if network == "shuffle" and "upsampling" in jax.tree_util.keystr(path):
            leaf = jnp.tile(leaf[..., : leaf.shape[-1] // 4], 4)  # as ICNR starts
        if leaf.ndim != 4:
            return leaf
        return (leaf + leaf[::-1] + leaf[:, ::-1] + leaf[::-1, ::-1]) / 4

    apply = compiled(nnx.merge(graph, jax.tree_util.tree_map_with_path(symmetric, state)))
    batch = images(13, 1, 24, 32, 1) if down else images(13, 1, 6, 8, 1)
    result = apply(batch)
    assert float(result.std()) > 1e-3
    for flip in (np.s_[:, ::-1], np.s_[:, :, ::-1]):
        np.testing.assert_allclose(apply(batch[flip]), result[flip], atol=1e-6)


@pytest.mark.parametrize("base", ["none", "bicubic", "consistent"])
def test_only_the_consistent_image_agrees_with_the_scan(base: str) -> None:
    rng = np.random.default_rng(20)
    coarse = ndimage.gaussian_filter(rng.normal(size=(16, 20)), 1.5)
    clinical = (0.7 * coarse / np.abs(coarse).max()).astype(np.float32)[None, :, :, None]
    sr = np.asarray(compiled(weighted(lambda: sr_resnet(base=base)))(clinical))
    pooled = sr.reshape(1, 16, 4, 20, 4, 1).mean(axis=(2, 4))
    error = np.abs(pooled - clinical)[:, 2:-2, 2:-2].max()
    assert error < 0.01 if base == "consistent" else error > 0.05
    inner = np.corrcoef(pooled.ravel(), clinical.ravel())[0, 1]
    assert inner > 0.8 if base != "none" else inner < 0.8


@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_images_smaller_than_the_padding(shape: tuple[int, int]) -> None:
    result = compiled(weighted(sr_resnet))(images(14, 1, *shape, 1))
    assert result.shape == (1, 4 * shape[0], 4 * shape[1], 1)
    assert bool(jnp.isfinite(result).all())


# Convolutions from and to one channel, computed on blocks of pixels where the size is even


@pytest.mark.parametrize(("size", "padding", "mode"), [(7, 3, "reflect"), (4, 1, "constant")])
@pytest.mark.parametrize("channels", [(3, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("shape", [(10, 12), (9, 13), (9, 12)])
def test_convolution_from_or_to_one_channel(
    size: int, padding: int, mode: str, channels: tuple[int, int], shape: tuple[int, int]
) -> None:
    options = {"padding": padding, "pad_mode": mode, "dtype": jnp.float32}
    conv = Conv(*channels, size, **options, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)
    batch = images(15, 2, *shape, channels[0])
    target = images(16, *jax.eval_shape(conv, batch).shape)

    def ours(state: nnx.State, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = nnx.merge(graph, state)(batch)
        return jnp.sum(result * target), result

    def plain(kernel: jax.Array, bias: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        sides = (padding, padding)
        padded = jnp.pad(batch, ((0, 0), sides, sides, (0, 0)), mode=mode)
        result = lax.conv_general_dilated(
            padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum((result + bias) * target), result + bias

    (of_state, of_batch), result = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))(
        state, batch
    )
    expected, wanted_result = jax.jit(jax.grad(plain, argnums=(0, 1, 2), has_aux=True))(
        conv.conv.kernel[...], conv.conv.bias[...], batch
    )
    np.testing.assert_allclose(result, wanted_result, atol=1e-5)
    found = of_state["conv"]["kernel"][...], of_state["conv"]["bias"][...], of_batch
    for gradient, wanted in zip(found, expected, strict=True):
        assert float(jnp.abs(wanted).max()) > 0.01
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_gradients_of_the_convolution_to_one_channel_in_bfloat16() -> None:
    def gradients(dtype) -> nnx.State:
        options = {"padding": 3, "dtype": dtype}
        make = lambda: Conv(3, 1, 7, **options, rngs=nnx.Rngs(0))  # noqa: E731
        graph, state = nnx.split(weighted(make))
        batch, target = images(17, 2, 10, 12, 3), images(18, 2, 10, 12, 1)
        return jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(batch) * target)))(
            state
        )

    exact, rounded = (gradients(dtype)["conv"]["kernel"][...] for dtype in DTYPES)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.02 * float(jnp.abs(exact).max()))
