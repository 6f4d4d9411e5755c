import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.resident import ResidentPatches, draw, make_batch
from mmsr_jax import methods
from mmsr_jax.config import Config, DataConfig, NetworksConfig, OptimizerConfig
from mmsr_jax.mesh import data_mesh
from mmsr_jax.methods import Method
from mmsr_jax.train_state import (
    TrainState,
    create_optimizer,
    create_train_state,
    learning_rate_schedule,
)
from mmsr_jax.train_step import make_resident_train_steps, make_train_step

POOL_SIZE, BETA_1 = 3, 0.5
NETWORKS = [
    ("generators", "clinical_to_micro"),
    ("generators", "micro_to_clinical"),
    ("discriminators", "clinical"),
    ("discriminators", "micro"),
]
TERMS = {
    *(f"{kind}_{domain}" for kind in ("adversarial", "cycle", "discriminator", "structure")
      for domain in ("clinical", "micro")),
    "intensity_clinical",
    "intensity_micro",
    "generator_loss",
    "correlation",
    "contrast",
}  # fmt: skip
# Compiles several times faster, for steps that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    FAST_COMPILATION["xla_cpu_use_fusion_emitters"] = False
Batch = dict[str, np.ndarray]
Step = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]


def tiny_config(compute_dtype: str = "float32", batch_size: int = 1) -> Config:
    return Config(
        compute_dtype=compute_dtype,
        batch_size=batch_size,
        steps=400,
        pool_size=POOL_SIZE,
        data=DataConfig(scale=2, clinical_patch_px=16),
        networks=NetworksConfig(
            sr_channels=4,
            sr_blocks=1,
            sr_tail_channels=4,
            down_channels=4,
            down_blocks=1,
            discriminator_channels=4,
            discriminator_max_channels=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3),
    )


def batch_of(seed: int, count: int = 1) -> Batch:
    """Smooth, unpaired patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-0.8, 0.8, (2, count, 8, 8, 1)).astype(np.float32)
    clinical = np.kron(coarse[0], np.ones((1, 2, 2, 1), np.float32))
    micro = np.kron(coarse[1], np.ones((1, 4, 4, 1), np.float32))
    return {"clinical": clinical, "micro": micro}


def resident_patches(clinical: int = 3, micro: int = 5) -> dict[str, ResidentPatches]:
    """Patches as stored, that become what `batch_of` gives."""

    def domain(name: str, count: int) -> ResidentPatches:
        patches = np.concatenate([batch_of(seed)[name] for seed in range(count)])
        stored = np.round(1000 * patches).astype(np.int16)
        gain = np.full((count, 1, 1, 1), 1e-3, np.float32)
        return ResidentPatches(*map(jnp.asarray, (stored, gain, np.zeros_like(gain))))

    return {"clinical": domain("clinical", clinical), "micro": domain("micro", micro)}


@functools.cache
def compiled_resident(steps: int) -> Any:
    """The compiled dispatch of so many steps on batches that are drawn on the device."""
    config = tiny_config()
    config.data.residency, config.data.augment = "device", True
    config.steps_per_dispatch = steps
    method, _, state = compiled()
    dispatch = make_resident_train_steps(config, method, data_mesh())
    return dispatch.lower(state, resident_patches()).compile(compiler_options=FAST_COMPILATION)


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=FAST_COMPILATION)


@functools.cache
def compiled(compute_dtype: str = "float32") -> tuple[Method, Step, TrainState]:
    """(method, compiled step, the float32 state at step 0 in NumPy)."""
    config = tiny_config(compute_dtype)
    method = methods.create(config)
    if compute_dtype == "float32":
        state = jax.device_get(quick(lambda: create_train_state(config, method))())
    else:
        state = compiled()[2]
    step = make_train_step(config, method, data_mesh())
    executable = step.lower(state, batch_of(0)).compile(compiler_options=FAST_COMPILATION)
    return method, executable, state


def on_device(state: TrainState) -> TrainState:
    """A copy of its own, as a step takes its state's memory."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def run(*batches: Batch, compute_dtype: str = "float32") -> TrainState:
    """The state after one step for each batch, in NumPy."""
    _, step, state = compiled(compute_dtype)
    state = on_device(state)
    for batch in batches:
        state, _ = step(state, batch)
    return jax.device_get(state)


def largest(tree: Any) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@functools.cache
def losses_of_first_step() -> tuple[Any, ...]:
    """Gradients, fakes and terms of step 0, straight from the method's two losses."""
    method, _, state = compiled()
    batch = batch_of(0)

    def generators(params: Any) -> Any:
        return method.generator_loss(params, batch, jax.random.key(0))

    of_generators, (fakes, terms) = quick(jax.grad(generators, has_aux=True))(state.params)
    of_discriminators, more_terms = quick(
        jax.grad(lambda params: method.discriminator_loss(params, fakes, batch), has_aux=True)
    )(state.params)
    return jax.device_get((of_generators, of_discriminators, fakes, {**terms, **more_terms}))


def adam_mean(state: TrainState, branch: str) -> Any:
    """Adam's running mean of the gradient: (1 − β1) times the gradient after one step."""
    return state.opt_states[branch][0].mu


# State


def test_initial_state() -> None:
    _, _, state = compiled()
    assert state.step == 0
    assert state.pools["clinical"].images.shape == (1, POOL_SIZE, 16, 16, 1)
    assert state.pools["micro"].images.shape == (1, POOL_SIZE, 32, 32, 1)
    assert [pool.filled for pool in state.pools.values()] == [0, 0]
    assert set(state.metric_sums) == TERMS
    assert largest(state.metric_sums) == 0
    for branch, name in NETWORKS:
        assert largest(state.params[branch][name]) > 0
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}


def test_seed_decides_the_initial_state() -> None:
    method, _, state = compiled()
    config = tiny_config()

    def create(seed: jax.Array) -> TrainState:
        return create_train_state(dataclasses.replace(config, seed=seed), method)

    again, other = (jax.device_get(quick(create)(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert (other.key != state.key).any()
    for branch, name in NETWORKS:
        kernels = [leaf for leaf in jax.tree.leaves(state.params[branch][name]) if leaf.ndim == 4]
        others = [leaf for leaf in jax.tree.leaves(other.params[branch][name]) if leaf.ndim == 4]
        assert all((a != b).any() for a, b in zip(kernels, others, strict=True))


# One step


def test_one_step_changes_all_networks() -> None:
    before, after = compiled()[2], run(batch_of(0))
    assert after.step == 1
    for branch, name in NETWORKS:
        for old, new in zip(
            jax.tree.leaves(before.params[branch][name]),
            jax.tree.leaves(after.params[branch][name]),
            strict=True,
        ):
            assert np.isfinite(new).all()
            if old.ndim == 4:  # kernels; a bias before an instance norm has no gradient
                assert (old != new).mean() > 0.5


def test_each_optimiser_follows_its_own_loss() -> None:
    of_generators, of_discriminators, _, _ = losses_of_first_step()
    after = run(batch_of(0))
    expected = {
        "generators": of_generators["generators"],
        "discriminators": of_discriminators["discriminators"],
    }
    for branch, name in NETWORKS:
        size = largest(expected[branch][name])
        assert size > 1e-4
        for found, gradient in zip(
            jax.tree.leaves(adam_mean(after, branch)[name]),
            jax.tree.leaves(expected[branch][name]),
            strict=True,
        ):
            np.testing.assert_allclose(found, (1 - BETA_1) * gradient, atol=1e-5 * size)
    # what the step must leave out: each loss would also move the other branch
    for domain in ("clinical", "micro"):
        assert largest(of_generators["discriminators"][domain]) > 1e-4
    assert largest(of_discriminators["generators"]) == 0


def test_discriminators_teach_their_generators() -> None:
    method, _, state = compiled()

    def adversarial(generators: Any, domain: str) -> jax.Array:
        params = {**state.params, "generators": generators}
        return method.generator_loss(params, batch_of(0), jax.random.key(0))[1][1][
            f"adversarial_{domain}"
        ]

    for domain, teaches, other in (
        ("micro", "clinical_to_micro", "micro_to_clinical"),
        ("clinical", "micro_to_clinical", "clinical_to_micro"),
    ):
        gradient = quick(jax.grad(functools.partial(adversarial, domain=domain)))(
            state.params["generators"]
        )
        assert largest(gradient[teaches]) > 1e-5
        assert largest(gradient[other]) == 0


def test_first_update_is_adams() -> None:
    """Adam's first step is the learning rate times the sign of any gradient that is not tiny."""
    of_generators, of_discriminators, _, _ = losses_of_first_step()
    before, after = compiled()[2], run(batch_of(0))
    for branch, gradients in (
        ("generators", of_generators["generators"]),
        ("discriminators", of_discriminators["discriminators"]),
    ):
        for old, new, gradient in zip(
            jax.tree.leaves(before.params[branch]),
            jax.tree.leaves(after.params[branch]),
            jax.tree.leaves(gradients),
            strict=True,
        ):
            clear = np.abs(gradient) > 1e-4
            expected = old - 2e-3 * np.sign(gradient)
            np.testing.assert_allclose(new[clear], expected[clear], atol=2e-6)


def test_discriminators_see_the_fakes_of_before_the_update() -> None:
    method, _, state = compiled()
    batch = batch_of(0)
    translate = quick(method.translate)
    images = translate(state.params, batch)
    after = run(batch)
    np.testing.assert_allclose(after.pools["micro"].images[0, 0], images["sr"][0], atol=1e-6)
    np.testing.assert_allclose(
        after.pools["clinical"].images[0, 0], images["fake_clinical"][0], atol=1e-6
    )
    moved = translate(after.params, batch)
    assert float(np.abs(moved["sr"] - images["sr"]).max()) > 1e-4


def test_pools_fill_and_stay_full() -> None:
    fills = []
    _, step, state = compiled()
    state = on_device(state)
    for seed in range(POOL_SIZE + 2):
        state, done = step(state, batch_of(seed))
        assert int(done) == seed + 1
        fills.append([int(pool.filled) for pool in state.pools.values()])
    assert fills == [[1, 1], [2, 2], [3, 3], [3, 3], [3, 3]]
    for pool in state.pools.values():
        assert len({image.tobytes() for image in np.asarray(pool.images)[0]}) == POOL_SIZE


def test_without_pools_discriminators_see_the_newest_fakes() -> None:
    config = dataclasses.replace(tiny_config(), pool_size=0)
    method, _, pooled = compiled()
    shapes = jax.eval_shape(lambda: create_train_state(config, method))
    assert shapes.pools == {}
    step = make_train_step(config, method, data_mesh()).lower(shapes, batch_of(0))
    step = step.compile(compiler_options=FAST_COMPILATION)
    state = on_device(pooled._replace(pools={}))
    for seed in range(3):
        before = state._replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
        _, (fakes, _) = method.generator_loss(before.params, batch_of(seed), jax.random.key(0))
        _, expected = method.discriminator_loss(before.params, fakes, batch_of(seed))
        state, _ = step(before, batch_of(seed))
        for name, value in expected.items():
            assert state.metric_sums[name] == pytest.approx(float(value), rel=1e-4), name


def test_metrics_are_sums_over_steps() -> None:
    _, _, _, terms = losses_of_first_step()
    first = run(batch_of(0)).metric_sums
    assert set(first) == TERMS
    for name, value in terms.items():
        assert first[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name

    _, step, state = compiled()
    state, _ = step(on_device(state), batch_of(0))
    state = state._replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
    second = jax.device_get(step(state, batch_of(1))[0].metric_sums)
    both = run(batch_of(0), batch_of(1)).metric_sums
    for name in TERMS:
        assert both[name] == pytest.approx(first[name] + second[name], rel=1e-5, abs=1e-6), name


def test_loss_of_generators_is_the_weighted_sum_of_its_terms() -> None:
    _, _, _, terms = losses_of_first_step()
    weights = {
        "adversarial_clinical": 1,
        "adversarial_micro": 1,
        "cycle_clinical": 10,
        "cycle_micro": 10,
        "structure_clinical": 2,
        "structure_micro": 1,
        "intensity_clinical": 1,
        "intensity_micro": 1,
    }
    expected = sum(weight * float(terms[name]) for name, weight in weights.items())
    assert float(terms["generator_loss"]) == pytest.approx(expected, rel=1e-5)


def test_warning_lights_match_numpy() -> None:
    _, _, fakes, terms = losses_of_first_step()
    clinical, sr = batch_of(0)["clinical"], fakes["micro"]
    pooled = sr.reshape(1, 16, 2, 16, 2, 1).mean(axis=(2, 4))
    correlation = np.corrcoef(clinical.ravel(), pooled.ravel())[0, 1]
    assert float(terms["correlation"]) == pytest.approx(correlation, abs=1e-4)
    assert float(terms["contrast"]) == pytest.approx(sr.std() / clinical.std(), rel=1e-4)


def test_same_state_and_batches_give_the_same_bits() -> None:
    batches = [batch_of(seed) for seed in range(POOL_SIZE + 2)]
    jax.tree.map(np.testing.assert_array_equal, run(*batches), run(*batches))


def test_bfloat16_trains_float32_parameters() -> None:
    exact = run(batch_of(0)).metric_sums
    after = run(batch_of(0), compute_dtype="bfloat16")
    arrays = (after.params, after.opt_states, after.pools, after.metric_sums)
    for leaf in jax.tree.leaves(arrays):
        assert leaf.dtype in (np.float32, np.int32)
        assert np.isfinite(leaf).all()
    for name in TERMS - {"correlation"}:
        assert after.metric_sums[name] == pytest.approx(exact[name], rel=0.05, abs=0.02), name
    assert after.metric_sums["generator_loss"] != exact["generator_loss"]


def test_training_lowers_the_mmsr_terms() -> None:
    _, step, state = compiled()
    state, batch, history = on_device(state), batch_of(0), []
    for _ in range(60):
        state = state._replace(metric_sums=jax.tree.map(jnp.zeros_like, state.metric_sums))
        state, _ = step(state, batch)
        history.append(jax.device_get(state.metric_sums))
    for name in ("structure_clinical", "intensity_clinical", "intensity_micro", "cycle_micro"):
        assert history[-1][name] < 0.8 * history[0][name], name
    assert history[-1]["correlation"] > history[0]["correlation"] + 0.2
    assert all(np.isfinite(value) for terms in history for value in terms.values())


# Batches that are drawn on the device


def test_a_dispatch_is_a_step_on_the_batch_that_is_drawn() -> None:
    _, step, state = compiled()
    resident, dispatch = resident_patches(), compiled_resident(1)
    one, other = on_device(state), on_device(state)
    for number in range(7):  # over the ends of epochs of 3 and of 5 steps
        draws = draw(resident, one.step, 1, batch_size=1, seed=tiny_config().seed)
        draws = jax.tree.map(lambda leaf: leaf[0], draws)
        one, _ = step(one, make_batch(resident, draws, augment=True))
        other, done = dispatch(other, resident)
        assert int(done) == number + 1
        assert_close(one, other)
        other = on_device(one)  # so that rounding does not add up


def test_a_dispatch_of_four_steps_is_four_of_one() -> None:
    _, _, state = compiled()
    resident, dispatch = resident_patches(), compiled_resident(1)
    one = on_device(state)
    for _ in range(4):
        one, _ = dispatch(one, resident)
    four, done = compiled_resident(4)(on_device(state), resident)
    assert int(done) == int(four.step) == 4
    assert_close(one, four)


def assert_close(one: TrainState, other: TrainState) -> None:
    """But for what the order of summation changes."""
    np.testing.assert_array_equal(one.step, other.step)
    for name, total in one.metric_sums.items():
        assert float(other.metric_sums[name]) == pytest.approx(float(total), rel=1e-3), name
    for branch in one.params:
        mean, other_mean = adam_mean(one, branch), adam_mean(other, branch)
        for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(other_mean), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3 * largest(mean))
    for domain, pool in one.pools.items():
        np.testing.assert_allclose(pool.images, other.pools[domain].images, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_resident_patches_are_neither_copied_nor_converted(steps: int) -> None:
    config = tiny_config()
    config.data.residency, config.steps_per_dispatch = "device", steps
    method, _, state = compiled()
    resident = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((10_000, *leaf.shape[1:]), leaf.dtype), resident_patches()
    )
    dispatch = make_resident_train_steps(config, method, data_mesh()).lower(state, resident)
    memory = dispatch.compile(compiler_options=FAST_COMPILATION).memory_analysis()
    micro_bytes = 10_000 * 32 * 32 * 2
    assert memory.argument_size_in_bytes > micro_bytes
    assert memory.temp_size_in_bytes < micro_bytes / 4


# Rematerialisation


@pytest.mark.parametrize("method", ["cyclegan", "unit"])
def test_rematerialisation_keeps_less_and_changes_nothing(method: str) -> None:
    def residuals_and_gradients(remat: bool) -> tuple[int, Any]:
        config = tiny_config()
        config.method, config.remat = method, remat
        config.networks.unit_channels, config.networks.unit_blocks = 8, 1
        config.data.clinical_patch_px = 32  # for the discriminator of UNIT
        functions = methods.create(config)
        clinical = np.kron(batch_of(0)["clinical"], np.ones((1, 2, 2, 1), np.float32))
        batch = {"clinical": clinical, "micro": np.kron(clinical, np.ones((1, 2, 2, 1)))}
        batch = {name: images.astype(np.float32) for name, images in batch.items()}

        def loss(params: Any) -> jax.Array:
            fakes = {name: images[:, ::-1] for name, images in batch.items()}
            return (
                functions.generator_loss(params, batch, jax.random.key(1))[0]
                + functions.discriminator_loss(params, fakes, batch)[0]
            )

        params = quick(functions.init)(jax.random.key(0))
        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))
        return kept, jax.device_get(quick(jax.grad(loss))(params))

    (kept, gradients), (kept_less, same) = map(residuals_and_gradients, (False, True))
    assert kept_less < 0.6 * kept
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest(gradients))


# Learning rate


@pytest.mark.parametrize(("steps", "fraction"), [(400, 0.5), (10, 0.3), (7, 1.0)])
def test_learning_rate_is_constant_then_linear_to_zero(steps: int, fraction: float) -> None:
    config = OptimizerConfig(learning_rate=4e-4, decay_fraction=fraction)
    schedule = learning_rate_schedule(config, steps)
    decaying = round(steps * fraction)
    expected = [4e-4 * min(1, (steps - step) / decaying) for step in range(steps + 1)]
    found = [float(schedule(step)) for step in range(steps + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert found[-1] == 0


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_sudden_gradient_moves_arrays_by_the_clip_at_most(clip: float) -> None:
    config = Config(optimizer=OptimizerConfig(learning_rate=0.01, clip_update_rms=clip))
    optimizer = create_optimizer(config)
    params = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
    state = optimizer.init(params)
    for size in (*[1e-3] * 20, 1.0):
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, size), params)  # noqa: B023
        updates, state = optimizer.update(gradients, state)
    for update in jax.tree.leaves(updates):
        rms = float(jnp.sqrt(jnp.mean(update**2))) / 0.01
        assert rms == pytest.approx(clip, rel=1e-4) if clip else rms > 2


def test_learning_rate_without_decay() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1e-3, decay_fraction=0), 5)
    assert [float(schedule(step)) for step in range(5)] == pytest.approx([1e-3] * 5)


def test_learning_rate_rises_over_the_warm_up() -> None:
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=3, decay_fraction=0.5)
    schedule = learning_rate_schedule(config, 8)
    expected = [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    assert [1e3 * float(schedule(step)) for step in range(8)] == pytest.approx(expected)


# Several devices


_TWO_DEVICES = """
import sys
sys.path.insert(0, {directory!r})
import jax, numpy as np
from jax.sharding import AxisType
from test_train_step import FAST_COMPILATION, batch_of, quick, resident_patches, tiny_config
from mmsr_jax import methods
from mmsr_jax.mesh import replicated, split_batch
from mmsr_jax.train_state import create_train_state, state_sharding
from mmsr_jax.train_step import make_resident_train_steps, make_train_step

assert jax.device_count() == 2
config = tiny_config(batch_size=2)
config.steps_per_dispatch = 2
method = methods.create(config)
initial = jax.device_get(quick(lambda: create_train_state(config, method))())

def trained(devices, make, data, place):
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    data = jax.device_put(data, place(mesh))
    for leaf in jax.tree.leaves(data):
        assert len(leaf.sharding.device_set) == len(devices)
    state = jax.device_put(initial, state_sharding(initial, mesh))
    step = make(config, method, mesh).lower(state, data).compile(compiler_options=FAST_COMPILATION)
    if make is make_train_step:  # batches that are drawn on the device have what moves them
        assert "all-gather" not in step.as_text(), "something other than sums crosses devices"
    state, _ = step(state, data)
    assert len(state.step.sharding.device_set) == len(devices)
    return jax.device_get(state)

for case in (
    (make_train_step, batch_of(0, 2), split_batch),
    (make_resident_train_steps, resident_patches(), replicated),
):
    two, one = (trained(devices, *case) for devices in (jax.devices(), jax.devices()[:1]))
    gradients = [{{k: v[0].mu for k, v in state.opt_states.items()}} for state in (two, one)]
    for name, (a, b) in {{
        "gradients": gradients,
        "pools": (two.pools, one.pools),
        "metrics": (two.metric_sums, one.metric_sums),
    }}.items():
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=name)
    # Adam turns the rounding of a vanishing gradient into a whole step: compare the others
    for x, y, g in zip(*map(jax.tree.leaves, (two.params, one.params, gradients[1])), strict=True):
        clear = np.abs(g) > 1e-4
        np.testing.assert_allclose(x[clear], y[clear], atol=1e-5, err_msg="parameters")
    assert np.isfinite(two.metric_sums["generator_loss"])
print("equal")
"""


def test_two_devices_compute_what_one_computes() -> None:
    directory = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES.format(directory=str(directory))],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            "--xla_force_host_platform_device_count=2",
        },
        cwd=directory.parents[1],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "equal"
