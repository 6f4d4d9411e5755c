import functools
import inspect
import math
from collections.abc import Callable
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d
from scipy.stats import norm
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from mmsr_jax import losses
from mmsr_jax.losses import (
    average_pool,
    kl_loss,
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


@pytest.mark.parametrize("constants", CONSTANTS)
def test_structure_loss_matches_dm_pix(constants: str) -> None:
    a, b = related(4)
    k1, k2 = (c**0.5 / 2 for c in C1_C2[constants])
    similarity = dm_pix.ssim(jnp.asarray(a + 1), jnp.asarray(b + 1), max_val=2.0, k1=k1, k2=k2)
    expected = 1 - float(similarity.mean())
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


@pytest.mark.parametrize(("mean", "darker"), [(0.1, 0.065), (0.5, 0.481)])
def test_literal_equation_darkens(mean: float, darker: float) -> None:
    pattern = 0.02 * images(1)
    pattern -= pattern.mean(axis=(1, 2, 3), keepdims=True)
    loss = compiled_loss("printed", "global", 1.0)
    means = np.linspace(0.03, 0.6, 115)
    losses = [float(loss(mean - 1 + pattern, other - 1 + pattern)) for other in means]
    assert means[np.argmin(losses)] == pytest.approx(darker, abs=0.006)


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
    for truth in (0.3 * images(15), blank, np.full_like(blank, -1), np.full_like(blank, 1)):
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


def test_kl_loss_is_twice_the_divergence_from_the_unit_normal() -> None:
    means = 3 * np.random.default_rng(22).normal(size=(5, 3))
    z = np.linspace(-30, 30, 20001)
    log_ratio = norm.logpdf(z, means[..., None]) - norm.logpdf(z)
    divergence = np.trapezoid(norm.pdf(z, means[..., None]) * log_ratio, z)
    assert float(kl_loss(means)) == pytest.approx(2 * divergence.mean(), rel=1e-5)


def test_least_squares_adversarial_losses() -> None:
    real, fake = np.array([1.0, 0.0, 3.0], np.float32), np.array([0.5, -1.0], np.float32)
    assert float(lsgan_generator_loss(fake)) == pytest.approx((0.25 + 4) / 2)
    assert float(lsgan_discriminator_loss(real, fake)) == pytest.approx(
        0.5 * ((0 + 1 + 4) / 3 + (0.25 + 1) / 2)
    )
    assert float(lsgan_discriminator_loss(jnp.ones(4), jnp.zeros(4))) == 0
    assert float(lsgan_generator_loss(jnp.ones(4))) == 0


# The MMSR loss


def problem(scale: int = 4, seed: int = 23) -> dict[str, np.ndarray]:
    coarse, fine = (2, 12, 16, 1), (2, 12 * scale, 16 * scale, 1)
    clinical, fake_clinical = related(seed, coarse)
    micro = 0.5 * images(seed + 8, fine)
    detail = images(seed + 9, fine)
    sr = 0.4 * np.kron(clinical, np.ones((1, scale, scale, 1), np.float32)) + 0.4 * detail
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


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "structure, gaussian": structure_loss,
    "structure, global": partial(structure_loss, constants="squared", window="global"),
    "structure, literal": partial(structure_loss, luminance_factor=1.0),
    "pixel, mse": pixel_loss,
    "pixel, l1": partial(pixel_loss, kind="l1"),
    "reconstruction": reconstruction_loss,
    "adversarial, generator": lsgan_generator_loss,
    "adversarial, discriminator": lsgan_discriminator_loss,
    "kl": kl_loss,
    "mmsr": lambda *images: mmsr_loss(*images)[0],
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def arguments(name: str, seed: int) -> tuple[np.ndarray, ...]:
    if name == "mmsr":
        return tuple(problem(seed=seed).values())
    return related(seed)[: 1 if name in ("kl", "adversarial, generator") else 2]


@functools.cache
def compiled_with_gradients(name: str) -> Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]:
    """The value, and the gradient with respect to every argument."""
    count = len(arguments(name, 0))
    return jax.jit(jax.value_and_grad(LOSSES[name], argnums=tuple(range(count))))


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_arrays_give_a_float32_scalar_with_and_without_jit(name: str, dtype: type) -> None:
    given = [image.astype(dtype) for image in arguments(name, 43)]
    eager = LOSSES[name](*given)
    compiled, _ = compiled_with_gradients(name)(*given)
    for result in (eager, compiled):
        assert (result.shape, result.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(eager, compiled, rtol=1e-5)


@every_loss
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    given = arguments(name, 43)
    rounded = [jnp.asarray(image, jnp.bfloat16) for image in given]
    value, gradients = compiled_with_gradients(name)(*rounded)
    assert value.dtype == jnp.float32
    of_rounded, _ = compiled_with_gradients(name)(*(image.astype(np.float32) for image in rounded))
    np.testing.assert_allclose(value, of_rounded, rtol=1e-5)
    of_given, _ = compiled_with_gradients(name)(*given)
    np.testing.assert_allclose(value, of_given, rtol=1e-2)
    for gradient in gradients:
        assert gradient.dtype == jnp.bfloat16
        assert bool(jnp.isfinite(gradient).all())


@every_loss
def test_vmap_is_a_loop(name: str) -> None:
    cases = [arguments(name, seed) for seed in (50, 60, 70)]
    stacked = (np.stack(images) for images in zip(*cases))
    values, gradients = jax.jit(jax.vmap(compiled_with_gradients(name)))(*stacked)
    for number, case in enumerate(cases):
        value, of_case = compiled_with_gradients(name)(*case)
        np.testing.assert_allclose(values[number], value, rtol=1e-5)
        for gradient, alone in zip(gradients, of_case):
            np.testing.assert_allclose(gradient[number], alone, atol=1e-6)


@pytest.mark.parametrize("constants", CONSTANTS)
def test_every_mmsr_term_pulls_nearly_blank_images_to_the_structure(constants: str) -> None:
    x = problem()
    rng = np.random.default_rng(60)
    blank = [
        (x[name].mean() + 0.01 * rng.normal(size=x[name].shape)).astype(np.float32)
        for name in ("sr", "fake_clinical")
    ]

    def terms_of(sr: jax.Array, fake_clinical: jax.Array) -> dict[str, jax.Array]:
        return mmsr_loss(x["clinical"], sr, x["micro"], fake_clinical, constants=constants)[1]

    wanted = {
        "clinical": np.kron(x["clinical"], np.ones((1, 4, 4, 1))),
        "micro": block_reduce(x["micro"], (1, 4, 4, 1), np.mean),
    }
    gradients = jax.jit(jax.jacrev(terms_of, argnums=(0, 1)))(*blank)
    for name, (of_sr, of_fake) in gradients.items():
        domain = name.split("_")[1]
        gradient = of_sr if domain == "clinical" else of_fake
        assert np.isfinite(gradient).all()
        assert correlation(-gradient, wanted[domain]) > 0.3, name


# Contract


of_pairs = pytest.mark.parametrize("loss", [structure_loss, pixel_loss, reconstruction_loss])
bad_values = pytest.mark.parametrize("bad", [1.1, -1.1, 255.0, np.nan, np.inf])


@of_pairs
def test_different_shapes_are_rejected(loss) -> None:
    with pytest.raises(ValueError, match=r"a has shape \(1, 12, 12, 1\), b \(1, 12, 13, 1\)"):
        loss(jnp.zeros((1, 12, 12, 1)), jnp.zeros((1, 12, 13, 1)))
    with pytest.raises(ValueError, match=r"a has shape \(1, 12, 12, 1\), b \(2, 12, 12, 1\)"):
        jax.eval_shape(loss, jnp.zeros((1, 12, 12, 1)), jnp.zeros((2, 12, 12, 1)))


@of_pairs
@pytest.mark.parametrize("shape", [(), (12, 12), (12, 12, 1), (1, 1, 12, 12, 1)])
def test_images_that_are_not_nhwc_are_rejected(loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a has shape .* must be NHWC"):
        loss(np.zeros(shape), np.zeros(shape))


@of_pairs
@bad_values
def test_values_out_of_range_are_rejected(loss, bad: float) -> None:
    good = images(80)
    broken = good.copy()
    broken[1, 3, 4, 0] = bad
    pairs = {"a": (broken, good), "b": (good, broken)}
    for name, pair in pairs.items():
        for given in (pair, map(jnp.asarray, pair)):
            with pytest.raises(ValueError, match=rf"{name} has a value .* must lie in \[-1, 1\]"):
                loss(*given)


@bad_values
@pytest.mark.parametrize("name", ["clinical", "sr", "micro", "fake_clinical"])
def test_mmsr_loss_names_the_image_out_of_contract(name: str, bad: float) -> None:
    x = problem()
    broken = x[name].copy()
    broken[0, :, ::2], broken[0, :, 1::2] = bad, -bad  # pooling averages a finite one away
    with pytest.raises(ValueError, match=rf"{name} has a value .* must lie in \[-1, 1\]"):
        mmsr_loss(**{**x, name: broken})
    with pytest.raises(ValueError, match=rf"{name} has shape \(48, 64\): must be NHWC"):
        mmsr_loss(**{**x, name: np.zeros((48, 64))})


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
    with pytest.raises(ValueError, match=r"scale apart|must be of one shape|cannot be pooled"):
        mmsr_loss(**{**problem(), name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0,) * 5])
def test_there_are_four_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be the four"):
        jax.eval_shape(partial(mmsr_loss, weights=weights), **problem())


# Public surface


def test_the_public_surface_is_sorted_and_complete() -> None:
    public = {name for name, thing in vars(losses).items() if inspect.isfunction(thing)}
    assert losses.__all__ == sorted(public)


@pytest.mark.parametrize("name", losses.__all__)
def test_public_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(losses, name)
    assert len(inspect.getdoc(function) or "") > 40
    signature = inspect.signature(function)
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    assert inspect.Signature.empty not in [*annotations, signature.return_annotation]
