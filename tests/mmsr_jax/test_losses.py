import functools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from mmsr_jax.losses import (
    average_pool,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
    mmsr_loss,
    nearest_upsample,
    pixel_loss,
    reconstruction_loss,
    structure_loss,
)

C1_C2 = {"printed": (0.02, 0.06), "squared": (0.0004, 0.0036)}
CONSTANTS = sorted(C1_C2)
WINDOWS = ["gaussian", "global"]
RADIUS_PX = 5


def images(seed: int, shape=(2, 13, 17, 1)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def related(seed: int, shape=(2, 13, 17, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Two images that share a part, at different brightness."""
    shared = images(seed, shape)
    a = 0.5 * shared + 0.2 * images(seed + 1, shape) + 0.1
    b = 0.4 * shared + 0.3 * images(seed + 2, shape) - 0.2
    return a, b


def skimage_ssim_map(a: np.ndarray, b: np.ndarray, c1: float, c2: float) -> np.ndarray:
    """Of two (h, w) images in [0, 2], without the pixels that padding reaches."""
    _, full = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=2.0,
        K1=math.sqrt(c1) / 2,
        K2=math.sqrt(c2) / 2,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    return full[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]


def skimage_structure_loss(a: np.ndarray, b: np.ndarray, c1: float, c2: float) -> float:
    maps = [
        skimage_ssim_map(one[..., channel] + 1, other[..., channel] + 1, c1, c2)
        for one, other in zip(a, b)
        for channel in range(a.shape[-1])
    ]
    return 1 - float(np.mean(maps))


def equation_1(
    a: np.ndarray, b: np.ndarray, *, window: str, factor: float, c1: float, c2: float
) -> float:
    """1 − mean of (factor·μaμb + C1)(2σab + C2) / ((μa² + μb² + C1)(σa² + σb² + C2)), float64."""
    taps = np.exp(-0.5 * (np.arange(-RADIUS_PX, RADIUS_PX + 1) / 1.5) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2

    def mean(image: np.ndarray) -> np.ndarray:
        return image.mean() if window == "global" else convolve2d(image, kernel, mode="valid")

    values = []
    for x, y in zip(a[..., 0].astype(np.float64) + 1, b[..., 0].astype(np.float64) + 1):
        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        values.append(
            (factor * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        )
    return 1 - float(np.mean(values))


@functools.cache
def compiled_loss(
    constants: str = "printed", window: str = "gaussian", factor: float = 2.0
) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
    options = {"constants": constants, "window": window, "luminance_factor": factor}
    return jax.jit(partial(structure_loss, **options))


@functools.cache
def compiled_gradients(constants: str, window: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(jax.grad(compiled_loss(constants, window), argnums=(0, 1)))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


# f and g


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_pooling_and_upsampling_match_other_implementations(scale: int) -> None:
    fine = images(scale, (2, 3 * scale, 5 * scale, 2))
    np.testing.assert_allclose(
        average_pool(fine, scale), block_reduce(fine, (1, scale, scale, 1), np.mean), atol=1e-6
    )
    coarse = images(scale, (2, 3, 5, 2))
    np.testing.assert_array_equal(
        nearest_upsample(coarse, scale), np.kron(coarse, np.ones((1, scale, scale, 1), np.float32))
    )


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_pooling_undoes_upsampling_exactly(scale: int) -> None:
    coarse = np.round(1024 * images(scale, (2, 4, 6, 1))) / 1024  # their sums do not round
    np.testing.assert_array_equal(average_pool(nearest_upsample(coarse, scale), scale), coarse)


@pytest.mark.parametrize("shape", [(1, 9, 8, 1), (1, 8, 9, 1)])
def test_pooling_rejects_sizes_that_do_not_divide(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[2]} pixels cannot be pooled by 4"):
        average_pool(jnp.zeros(shape), 4)


# Structure


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("shape", [(2, 13, 17, 1), (1, 11, 24, 2)])
def test_structure_loss_matches_scikit_image(constants: str, shape: tuple[int, ...]) -> None:
    a, b = related(3, shape)
    expected = skimage_structure_loss(a, b, *C1_C2[constants])
    assert 0.05 < expected < 0.95
    assert float(compiled_loss(constants)(a, b)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("factor", [2.0, 1.0])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_structure_loss_matches_equation_1(constants: str, window: str, factor: float) -> None:
    a, b = related(7)
    c1, c2 = C1_C2[constants]
    expected = equation_1(a, b, window=window, factor=factor, c1=c1, c2=c2)
    loss = compiled_loss(constants, window, factor)(a, b)
    assert float(loss) == pytest.approx(expected, abs=2e-5)


def test_options_make_a_difference() -> None:
    a, b = related(7)
    losses = {
        float(compiled_loss(constants, window, factor)(a, b))
        for constants in CONSTANTS
        for window in WINDOWS
        for factor in (1.0, 2.0)
    }
    assert len(losses) == 8
    assert min(np.diff(sorted(losses))) > 1e-3


@pytest.mark.parametrize("window", WINDOWS)
def test_literal_equation_is_not_zero_for_equal_images(window: str) -> None:
    image = 0.02 * images(0) - 0.5  # 0.5 after the move to [0, 2]
    image -= image.mean(axis=(1, 2, 3), keepdims=True) + 0.5
    loss = float(compiled_loss("printed", window, 1.0)(image, image))
    assert loss == pytest.approx(1 - 0.27 / 0.52, abs=2e-3)
    assert float(compiled_loss("printed", window)(image, image)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_structure_loss_of_equal_images_is_zero(constants: str, window: str) -> None:
    image = images(5)
    assert float(compiled_loss(constants, window)(image, image)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_structure_loss_is_symmetric(window: str, factor: float) -> None:
    a, b = related(9)
    loss = compiled_loss("printed", window, factor)
    assert float(loss(a, b)) == pytest.approx(float(loss(b, a)), abs=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("mean", [-0.7, 0.0, 0.7])
def test_blank_is_worse_than_right_and_inverted_is_worse_than_blank(
    constants: str, window: str, mean: float
) -> None:
    pattern = 0.25 * images(11)
    pattern -= pattern.mean(axis=(1, 2, 3), keepdims=True)
    truth = mean + pattern
    right, blank, inverted = (
        float(compiled_loss(constants, window)(truth, image))
        for image in (mean + 0.8 * pattern, np.full_like(truth, mean), mean - pattern)
    )
    assert right + 0.05 < blank
    assert blank + 0.1 < inverted
    assert inverted <= 2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("means", [(-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)])
def test_gradient_step_raises_correlation_whatever_the_means(
    constants: str, window: str, means: tuple[float, float]
) -> None:
    truth = means[0] + 0.3 * images(13)
    fake = means[1] + 0.1 * images(14)
    _, gradient = compiled_gradients(constants, window)(truth, fake)
    step = fake - 0.02 * gradient / jnp.abs(gradient).max()
    assert correlation(truth, step) > correlation(truth, fake) + 0.01


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
def test_gradient_on_a_nearly_blank_fake_leads_to_the_structure(
    constants: str, window: str
) -> None:
    truth = -0.5 + 0.3 * images(15)
    fake = 0.2 + 1e-3 * np.random.default_rng(16).normal(size=truth.shape).astype(np.float32)
    gradient = np.asarray(compiled_gradients(constants, window)(truth, fake)[1])
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4
    assert correlation(-gradient, truth) > 0.2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("value", [-1.0, 0.2, 1.0])
def test_gradient_on_a_blank_fake_is_finite(constants: str, window: str, value: float) -> None:
    blank = np.full((2, 13, 17, 1), value, np.float32)
    for truth in (0.3 * images(15), blank):
        for gradient in compiled_gradients(constants, window)(truth, blank):
            assert np.isfinite(gradient).all()


def test_gradient_matches_finite_differences_of_scikit_image() -> None:
    a, b = related(17)
    direction = images(18, b.shape)
    _, gradient = compiled_gradients("printed", "gaussian")(a, b)
    step = 1e-4 * direction.astype(np.float64)
    above, below = (skimage_structure_loss(a, b + sign * step, 0.02, 0.06) for sign in (1, -1))
    slope = (above - below) / 2e-4
    assert abs(slope) > 1e-3
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(slope, rel=1e-2)


# Intensity, cycle and adversarial terms


def test_pixel_loss_matches_numpy() -> None:
    a, b = related(19)
    difference = a.astype(np.float64) - b
    assert float(pixel_loss(a, b)) == pytest.approx((difference**2).mean(), rel=1e-5)
    assert float(pixel_loss(a, b, kind="mse")) == float(pixel_loss(a, b))
    assert float(pixel_loss(a, b, kind="l1")) == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert float(pixel_loss(a, a)) == 0


def test_reconstruction_loss_is_the_mean_absolute_difference() -> None:
    a, b = related(21)
    assert float(reconstruction_loss(a, b)) == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="shapes differ"):
        reconstruction_loss(a, b[:, :-1])


def test_least_squares_adversarial_losses() -> None:
    real, fake = np.array([1.0, 0.0, 3.0], np.float32), np.array([0.5, -1.0], np.float32)
    assert float(lsgan_generator_loss(fake)) == pytest.approx((0.25 + 4) / 2)
    assert float(lsgan_discriminator_loss(real, fake)) == pytest.approx(
        0.5 * ((0 + 1 + 4) / 3 + (0.25 + 1) / 2)
    )
    assert float(lsgan_discriminator_loss(jnp.ones(4), jnp.zeros(4))) == 0
    assert float(lsgan_generator_loss(jnp.ones(4))) == 0


# The MMSR loss


def problem(scale: int = 4) -> dict[str, np.ndarray]:
    coarse, fine = (2, 12, 16, 1), (2, 12 * scale, 16 * scale, 1)
    clinical, fake_clinical = related(23, coarse)
    micro = 0.5 * images(31, fine)
    sr = 0.4 * np.kron(clinical, np.ones((1, scale, scale, 1), np.float32)) + 0.4 * images(32, fine)
    return {"clinical": clinical, "sr": sr, "micro": micro, "fake_clinical": fake_clinical}


@pytest.mark.parametrize("constants", CONSTANTS)
def test_each_term_compares_what_the_paper_compares(constants: str) -> None:
    scale = 4
    x = problem(scale)
    pooled = block_reduce(x["sr"], (1, scale, scale, 1), np.mean)
    raised = np.kron(x["fake_clinical"], np.ones((1, scale, scale, 1), np.float32))
    c1_c2 = C1_C2[constants]
    expected = {
        "structure_clinical": skimage_structure_loss(x["clinical"], pooled, *c1_c2),
        "structure_micro": skimage_structure_loss(x["micro"], raised, *c1_c2),
        "intensity_clinical": np.mean((x["clinical"] - pooled) ** 2),
        "intensity_micro": np.mean((x["micro"] - raised) ** 2),
    }
    weights = (2.0, 3.0, 5.0, 7.0)
    total, terms = jax.jit(partial(mmsr_loss, weights=weights, constants=constants))(**x)
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, abs=3e-5), name
    weighted = sum(weight * value for weight, value in zip(weights, expected.values()))
    assert float(total) == pytest.approx(weighted, abs=3e-4)


def test_default_weights_are_the_papers() -> None:
    total, terms = jax.jit(mmsr_loss)(**problem())
    weights = {name: 2 if name == "structure_clinical" else 1 for name in terms}
    expected = sum(weight * float(terms[name]) for name, weight in weights.items())
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_options_reach_the_terms() -> None:
    x = problem()
    options = {"window": "global", "luminance_factor": 1.0, "pixel": "l1"}
    _, terms = jax.jit(partial(mmsr_loss, **options))(**x)
    raised = np.kron(x["fake_clinical"], np.ones((1, 4, 4, 1), np.float32))
    structure = equation_1(x["micro"], raised, window="global", factor=1.0, c1=0.02, c2=0.06)
    assert float(terms["structure_micro"]) == pytest.approx(structure, abs=2e-5)
    assert float(terms["intensity_micro"]) == pytest.approx(
        np.abs(x["micro"] - raised).mean(), rel=1e-5
    )


def test_gradients_reach_each_generated_image_through_its_own_terms() -> None:
    x = problem()

    def terms_of(sr: jax.Array, fake_clinical: jax.Array) -> dict[str, jax.Array]:
        return mmsr_loss(x["clinical"], sr, x["micro"], fake_clinical)[1]

    gradients = jax.jit(jax.jacrev(terms_of, argnums=(0, 1)))(x["sr"], x["fake_clinical"])
    for name, (of_sr, of_fake) in gradients.items():
        reached, untouched = (of_sr, of_fake) if name.endswith("_clinical") else (of_fake, of_sr)
        assert float(jnp.abs(reached).max()) > 1e-6, name
        assert bool(jnp.isfinite(reached).all()), name
        assert float(jnp.abs(untouched).max()) == 0, name


def test_zero_weights_leave_no_gradient() -> None:
    x = problem()

    def total(sr: jax.Array) -> jax.Array:
        return mmsr_loss(**{**x, "sr": sr}, weights=(0, 0, 0, 0))[0]

    gradient = jax.jit(jax.grad(total))(x["sr"])
    assert float(jnp.abs(gradient).max()) == 0


def test_perfect_translations_cost_nothing() -> None:
    clinical = problem()["clinical"]
    blocks = np.kron(clinical, np.ones((1, 4, 4, 1), np.float32))
    total, _ = jax.jit(mmsr_loss)(clinical, blocks, blocks, clinical)
    assert float(total) == pytest.approx(0, abs=1e-5)


# Precision and transformations


@pytest.mark.parametrize("loss", [structure_loss, pixel_loss, reconstruction_loss])
def test_bfloat16_images_are_compared_in_float32(loss) -> None:
    a, b = (jnp.asarray(image, jnp.bfloat16) for image in related(43))
    result = loss(a, b)
    assert result.dtype == jnp.float32
    assert float(result) == float(loss(a.astype(jnp.float32), b.astype(jnp.float32)))


def test_mmsr_terms_of_bfloat16_images_are_float32() -> None:
    x = {name: jnp.asarray(image, jnp.bfloat16) for name, image in problem().items()}
    total, terms = jax.jit(mmsr_loss)(**x)
    assert {total.dtype, *(term.dtype for term in terms.values())} == {jnp.dtype(jnp.float32)}
    gradient = jax.jit(jax.grad(lambda sr: mmsr_loss(**{**x, "sr": sr})[0]))(x["sr"])
    assert gradient.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("scores", [lsgan_generator_loss, lambda s: lsgan_discriminator_loss(s, s)])
def test_bfloat16_scores_give_float32_losses(scores) -> None:
    assert scores(jnp.full((3,), 0.3, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("window", WINDOWS)
def test_structure_loss_under_jit_vmap_and_grad(window: str) -> None:
    loss = partial(structure_loss, window=window)
    pairs = [related(seed) for seed in (50, 60, 70)]
    a, b = (np.stack(stack) for stack in zip(*pairs))
    each = np.array([float(loss(*pair)) for pair in pairs])
    np.testing.assert_allclose(jax.jit(loss)(*pairs[0]), each[0], atol=1e-6)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=1)))(a, b)
    np.testing.assert_allclose(losses, each, atol=1e-6)
    for gradient, pair in zip(gradients, pairs):
        alone = compiled_gradients("printed", window)(*pair)[1]
        np.testing.assert_allclose(gradient, alone, atol=1e-6)


def test_mmsr_loss_under_jit_and_vmap() -> None:
    x = problem()
    total, terms = jax.jit(mmsr_loss)(**x)
    stacked = {name: np.stack([image, image[::-1]]) for name, image in x.items()}
    totals, many_terms = jax.jit(jax.vmap(lambda one: mmsr_loss(**one)))(stacked)
    np.testing.assert_allclose(totals, [total, total], rtol=1e-5)
    for name, term in terms.items():
        np.testing.assert_allclose(many_terms[name], [term, term], rtol=1e-5)


# Contract


@pytest.mark.parametrize("loss", [structure_loss, pixel_loss])
def test_different_shapes_are_rejected(loss) -> None:
    with pytest.raises(ValueError, match="NHWC of one shape"):
        loss(jnp.zeros((1, 12, 12, 1)), jnp.zeros((1, 12, 13, 1)))
    with pytest.raises(ValueError, match="NHWC of one shape"):
        loss(jnp.zeros((12, 12, 1)), jnp.zeros((12, 12, 1)))


@pytest.mark.parametrize("loss", [structure_loss, pixel_loss])
@pytest.mark.parametrize("bad", [1.1, -1.1, 255.0, np.nan, np.inf])
def test_values_out_of_range_are_rejected(loss, bad: float) -> None:
    good = images(80)
    broken = good.copy()
    broken[1, 3, 4, 0] = bad
    for pair in ((good, broken), (broken, good), (jnp.asarray(good), jnp.asarray(broken))):
        with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
            loss(*pair)


def test_rounding_beyond_the_range_is_tolerated() -> None:
    image = np.full((2, 13, 17, 1), 1.0005, np.float32)
    assert float(structure_loss(image, image)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 10, 32, 1), (1, 32, 10, 1)])
def test_images_smaller_than_the_window_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="smaller than the SSIM window"):
        structure_loss(jnp.zeros(shape), jnp.zeros(shape))
    assert float(structure_loss(jnp.zeros(shape), jnp.zeros(shape), window="global")) == 0


def test_unknown_options_are_rejected() -> None:
    image = jnp.zeros((1, 12, 12, 1))
    with pytest.raises(ValueError, match="constants='wang'"):
        structure_loss(image, image, constants="wang")
    with pytest.raises(ValueError, match="window='uniform'"):
        structure_loss(image, image, window="uniform")
    with pytest.raises(ValueError, match="pixel_loss='huber'"):
        pixel_loss(image, image, kind="huber")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sr", (2, 24, 64, 1)),  # 2 × 4 times
        ("sr", (2, 6, 8, 1)),  # smaller than the scan
        ("sr", (2, 50, 64, 1)),  # no whole scale
        ("sr", (1, 48, 64, 1)),  # another batch
        ("micro", (2, 24, 32, 1)),  # another scale than sr
        ("fake_clinical", (2, 12, 12, 1)),
    ],
)
def test_shapes_that_are_not_one_scale_apart_are_rejected(
    name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"scale apart|NHWC of one shape|cannot be pooled"):
        mmsr_loss(**{**problem(), name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0,) * 5])
def test_there_are_four_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        jax.eval_shape(partial(mmsr_loss, weights=weights), **problem())
