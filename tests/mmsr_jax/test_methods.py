"""What all methods owe to the step, and each its own sum of terms; on tiny networks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from mmsr_jax import methods
from mmsr_jax.config import Config, DataConfig, LossConfig, NetworksConfig
from mmsr_jax.mesh import data_mesh
from mmsr_jax.methods import Method, Params
from mmsr_jax.train_state import create_train_state
from mmsr_jax.train_step import make_train_step

METHODS = ["cyclegan", "unit", "cyclegan_original", "unit_original"]
SCALE, CLINICAL_PX, MICRO_PX = 4, 16, 64
WEIGHTS = LossConfig(
    lambda_1=2.5, lambda_2=0.7, lambda_3=1.3, lambda_4=0.4, cycle=9.0, reconstruction=6.0, kl=0.3
)
# Compiles several times faster, for networks that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    FAST_COMPILATION["xla_cpu_use_fusion_emitters"] = False
EXPECTED_WEIGHTS = {
    "adversarial": {"clinical": 1, "micro": 1},
    "structure": {"clinical": 2.5, "micro": 0.7},
    "intensity": {"clinical": 1.3, "micro": 0.4},
    "cycle": {"clinical": 9, "micro": 9},
    "reconstruction": {"clinical": 6, "micro": 6},
    "kl": {"clinical": 0.3, "micro": 0.3, "cycle_clinical": 0.3, "cycle_micro": 0.3},
    "identity": {"clinical": 5, "micro": 5},
}
KINDS_OF_TERMS = {
    "cyclegan": ("adversarial", "structure", "intensity", "cycle"),
    "unit": ("adversarial", "structure", "intensity", "cycle", "reconstruction", "kl"),
    "cyclegan_original": ("adversarial", "structure", "intensity", "cycle", "identity"),
    "unit_original": ("adversarial", "structure", "intensity", "cycle", "reconstruction", "kl"),
}


def tiny_config(name: str, **loss: Any) -> Config:
    config = Config(
        method=name,
        steps=10,
        pool_size=2,
        data=DataConfig(scale=SCALE, clinical_patch_px=CLINICAL_PX),
        networks=NetworksConfig(
            sr_channels=4,
            sr_blocks=1,
            sr_tail_channels=4,
            down_channels=4,
            down_blocks=1,
            unit_channels=8,
            unit_blocks=1,
            original_channels=2,
            original_blocks=1,
            discriminator_channels=4,
            discriminator_max_channels=8,
        ),
        loss=LossConfig(**(vars(WEIGHTS) | loss)),
    )
    if name == "cyclegan_original":
        config.loss.identity = 5.0
    return config


def batch_of(seed: int, count: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-0.8, 0.8, (2, count, 8, 8, 1)).astype(np.float32)
    ratio = (MICRO_PX // 8, CLINICAL_PX // 8)
    return {
        "clinical": np.kron(coarse[0], np.ones((1, ratio[1], ratio[1], 1), np.float32)),
        "micro": np.kron(coarse[1], np.ones((1, ratio[0], ratio[0], 1), np.float32)),
    }


@functools.cache
def initial(name: str) -> tuple[Method, Params]:
    """The method and parameters of NumPy: He-distributed weights and small biases."""
    method = methods.create(tiny_config(name))
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) == 4 else 0.05
        return rng.normal(0, spread, leaf.shape).astype(leaf.dtype)

    return method, jax.tree.map(values, jax.eval_shape(method.init, jax.random.key(0)))


@functools.cache
def generator_loss(name: str) -> Any:
    method, _ = initial(name)
    return jax.jit(method.generator_loss, compiler_options=FAST_COMPILATION)


@functools.cache
def losses(name: str, key: int = 0) -> tuple[float, dict, dict]:
    """(loss, fakes, terms) of the first batch."""
    _, params = initial(name)
    loss, (fakes, terms) = jax.device_get(
        generator_loss(name)(params, batch_of(0), jax.random.key(key))
    )
    return float(loss), fakes, terms


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_weighted_sum_of_its_terms(name: str) -> None:
    loss, _, terms = losses(name)
    expected, named = 0.0, {"generator_loss", "correlation", "contrast"}
    for kind in KINDS_OF_TERMS[name]:
        for domain, weight in EXPECTED_WEIGHTS[kind].items():
            expected += weight * float(terms[f"{kind}_{domain}"])
            named.add(f"{kind}_{domain}")
    assert loss == pytest.approx(expected, rel=1e-5)
    assert set(terms) == named
    assert all(np.isfinite(value) for value in terms.values())


@pytest.mark.parametrize("name", METHODS)
def test_translations_have_their_domains_sizes(name: str) -> None:
    method, params = initial(name)
    images = jax.eval_shape(method.translate, params, batch_of(0, 2))
    sizes = {key: image.shape for key, image in images.items()}
    clinical, micro = (2, CLINICAL_PX, CLINICAL_PX, 1), (2, MICRO_PX, MICRO_PX, 1)
    assert sizes == {
        "sr": micro,
        "fake_clinical": clinical,
        "cycle_clinical": clinical,
        "cycle_micro": micro,
    }
    odd = jax.ShapeDtypeStruct((1, 6, 9, 1), jnp.float32)
    assert jax.eval_shape(method.super_resolve, params, odd).shape == (1, 24, 36, 1)


@pytest.mark.parametrize("name", METHODS)
def test_super_resolution_is_the_translation(name: str) -> None:
    method, params = initial(name)
    batch = batch_of(3)
    sr = jax.jit(method.super_resolve, compiler_options=FAST_COMPILATION)(params, batch["clinical"])
    translated = jax.jit(method.translate, compiler_options=FAST_COMPILATION)(params, batch)["sr"]
    assert float(sr.std()) > 1e-3
    np.testing.assert_allclose(sr, translated, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_mmsr_terms_reach_only_the_generators_that_make_their_image(name: str) -> None:
    method, params = initial(name)

    def term(params: Params, wanted: str) -> jax.Array:
        return method.generator_loss(params, batch_of(0), jax.random.key(0))[1][1][wanted]

    gradient = jax.jit(jax.grad(term), static_argnums=1, compiler_options=FAST_COMPILATION)
    teaches = {
        "cyclegan": ("clinical_to_micro", "micro_to_clinical"),
        "unit": ("decoder_micro", "decoder_clinical"),
    }[name.removesuffix("_original")]
    for wanted, taught, other in (
        ("structure_clinical", *teaches),
        ("structure_micro", *teaches[::-1]),
    ):
        of_networks = gradient(params, wanted)
        assert largest(of_networks["generators"][taught]) > 1e-6
        assert largest(of_networks["generators"][other]) == 0
        assert largest(of_networks["discriminators"]) == 0


def largest(tree: Any) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_moves_every_network(name: str) -> None:
    config = tiny_config(name)
    config.optimizer.l2 = 1e-3
    method, params = initial(name)
    shapes = jax.eval_shape(lambda: create_train_state(config, method))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = state._replace(params=jax.tree.map(jnp.array, params))
    step = make_train_step(config, method, data_mesh()).lower(state, batch_of(0))
    after, _ = step.compile(compiler_options=FAST_COMPILATION)(state, batch_of(0))
    fakes = losses(name)[1]
    for domain, fake in fakes.items():
        assert after.pools[domain].images.shape[2:] == fake.shape[1:]
    for branch, networks in params.items():
        for network, before in networks.items():
            for old, new in zip(
                jax.tree.leaves(before), jax.tree.leaves(after.params[branch][network]), strict=True
            ):
                assert np.isfinite(new).all()
                if old.ndim == 4:
                    assert (old != new).mean() > 0.5, (branch, network)


# UNIT


@pytest.mark.parametrize("name", ["unit", "unit_original"])
def test_the_code_is_noisy_in_training_and_its_mean_in_inference(name: str) -> None:
    first, again, other = (losses(name, key)[1]["micro"] for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    method, params = initial(name)
    mean = jax.jit(method.super_resolve, compiler_options=FAST_COMPILATION)(
        params, batch_of(0)["clinical"]
    )
    assert np.abs(first - mean).max() > 1e-3


def test_noise_differs_between_passes_and_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    normal = jax.random.normal

    def noted(*args: Any, **options: Any) -> jax.Array:
        drawn.append(normal(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(jax.random, "normal", noted)
    method, params = initial("unit")
    method.generator_loss(params, batch_of(0, 2), jax.random.key(0))
    assert [noise.shape for noise in drawn] == [(2, CLINICAL_PX, CLINICAL_PX, 8)] * 4
    flat = np.stack([np.asarray(noise[i]).ravel() for noise in drawn for i in (0, 1)])
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.1
    assert flat.std(axis=1) == pytest.approx(np.ones(8), abs=0.05)


def test_both_domains_share_the_code() -> None:
    """The shared blocks are one network: both domains' images change with them."""
    method, params = initial("unit")
    changed = jax.tree.map(np.copy, params)
    changed["generators"]["shared_decoder"]["second"]["conv"]["bias"] += 1
    translate = jax.jit(method.translate, compiler_options=FAST_COMPILATION)
    before, after = (translate(p, batch_of(0)) for p in (params, changed))
    for name in ("sr", "fake_clinical"):
        assert np.abs(before[name] - after[name]).max() > 1e-3


@pytest.mark.parametrize("name", ["unit", "unit_original"])
def test_patches_too_small_for_the_discriminators(name: str) -> None:
    config = tiny_config(name)
    config.data.clinical_patch_px = 12
    with pytest.raises(UserError, match=r"clinical_patch_px=12: .* at least 64 pixels, not 48"):
        methods.create(config)


# The published sizes


@pytest.mark.parametrize(
    ("name", "generators", "discriminators"),
    [
        ("cyclegan", 729_473 + 2_205_185, 660_929 + 2_762_689),
        ("unit", 5_102_546, 657_089 + 3 * 2_755_009),
        # 11,378,179 and 2,764,737 are published for three channels: here one goes in, one comes out
        (
            "cyclegan_original",
            2 * (11_378_179 - 2 * 49 * 64 - 2 * (49 * 64 + 1)),
            2 * (2_764_737 - 2 * 16 * 64),
        ),
    ],
)
def test_parameters_of_the_paper_preset(name: str, generators: int, discriminators: int) -> None:
    method = methods.create(Config(method=name))
    params = jax.eval_shape(method.init, jax.random.key(0))
    counts = {
        branch: sum(leaf.size for leaf in jax.tree.leaves(networks))
        for branch, networks in params.items()
    }
    assert counts == {"generators": generators, "discriminators": discriminators}


def reach(config: Config) -> tuple[float | None, float | None]:
    """Of the trunk and of the tail."""
    return methods.create(config).super_resolution[2:]


def test_reach_of_unit() -> None:
    # stem 3, conv3 1, 3 + 1 + 1 + 3 blocks of 2, shuffles 1 + 1/2 + 1/4, head 3/8
    assert reach(Config(method="unit")) == (4 + 16, 1.75 + 0.375)
    instance = Config(method="unit", networks=NetworksConfig(norm="instance"))
    assert reach(instance) == (None, 1.75 + 0.375)
    for name in ("cyclegan_original", "unit_original"):
        assert reach(Config(method=name)) == (0, None)


@pytest.mark.parametrize("norm", ["pixel", "none"])
def test_unit_reaches_no_further_than_it_says(norm: str) -> None:
    config = tiny_config("unit")
    config.networks.norm = norm
    method = methods.create(config)
    _, params = initial("unit")
    apply = jax.jit(method.super_resolve, compiler_options=FAST_COMPILATION)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 32, 36, 1)).astype(np.float32)
    changed, at = image.copy(), np.array([15, 17])
    reach_px = sum(reach(config))
    changed[0, at[0], at[1]] *= -1
    difference = np.asarray(apply(params, changed) - apply(params, image))[0, :, :, 0]
    touched = np.argwhere(difference != 0)
    distances = (*(at - touched.min(axis=0) / SCALE), *((touched.max(axis=0) + 1) / SCALE - at - 1))
    for distance in distances:
        assert reach_px - 1 < distance < reach_px + 1 / SCALE
