import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from benchmarks.torch_peer import autoencoders as torch_autoencoders  # noqa: E402
from benchmarks.torch_peer import discriminators as torch_discriminators  # noqa: E402
from benchmarks.torch_peer import generators as torch_generators  # noqa: E402
from benchmarks.torch_peer.image_pool import ImagePool  # noqa: E402
from benchmarks.torch_peer.train_step import TrainStep, create_method  # noqa: E402
from benchmarks.torch_peer.weights import copy_weights  # noqa: E402
from benchmarks.weights import named_weights  # noqa: E402
from mmsr_jax import methods  # noqa: E402
from mmsr_jax.config import Config, DataConfig, NetworksConfig, OptimizerConfig  # noqa: E402
from mmsr_jax.mesh import data_mesh  # noqa: E402
from mmsr_jax.networks import discriminators, generators, unit  # noqa: E402
from mmsr_jax.train_state import TrainState, create_train_state  # noqa: E402
from mmsr_jax.train_step import make_train_step  # noqa: E402

METHODS = ("cyclegan", "unit")
CLINICAL_PX, MICRO_PX, BATCH_SIZE = 12, 96, 2
TINY = NetworksConfig(
    sr_channels=6,
    sr_blocks=2,
    sr_tail_channels=6,
    down_channels=4,
    down_blocks=2,
    unit_channels=12,
    unit_blocks=1,
    discriminator_channels=4,
    discriminator_max_channels=8,
)
SR = {"channels": 8, "blocks": 2, "tail_channels": 6}
PATCH = {"channels": 4, "max_channels": 12}
Tree = Any
# Compiles several times faster, for what runs slower than it needs to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    FAST_COMPILATION["xla_cpu_use_fusion_emitters"] = False


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=FAST_COMPILATION)


def to_torch(images: Any) -> Any:
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))


def random_weights(key: jax.Array, params: Tree) -> Tree:
    """Biases too, which start as zeros."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(tree, drawn)


def with_random_weights(ours: nnx.Module, theirs: Any, seed: int = 0) -> None:
    """The same for both."""
    params = random_weights(jax.random.key(seed), nnx.to_pure_dict(nnx.state(ours)))
    nnx.update(ours, params)
    copy_weights(named_weights(params), theirs)


def assert_same_outputs(ours: Any, theirs: Any, images: np.ndarray) -> None:
    expected = jax.tree.leaves(ours(jnp.asarray(images)))
    with torch.inference_mode():
        got = theirs(to_torch(images))
    got = got if isinstance(got, list) else [got]
    for a, b in zip(expected, got, strict=True):
        scale = float(np.abs(a).max())
        assert np.std(a) > 0.01 * scale
        np.testing.assert_allclose(b.permute(0, 2, 3, 1).numpy(), a, rtol=0, atol=1e-4 * scale)


# Networks


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(4, 13),
    st.integers(4, 13),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["nearest", "shuffle"]),
    st.integers(0, 99),
)
def test_g1_gives_what_ours_gives(
    n: int, rows: int, columns: int, scale: int, upsample: Any, seed: int
) -> None:
    ours = generators.SrResnet(**SR, scale=scale, norm="pixel", upsample=upsample, rngs=nnx.Rngs(0))
    theirs = torch_generators.SrResnet(**SR, scale=scale, upsample=upsample)
    with_random_weights(ours, theirs, seed)
    images = np.random.default_rng(seed).uniform(-1, 1, (n, rows, columns, 1)).astype(np.float32)
    assert_same_outputs(ours, theirs, images)


NETWORKS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "G2": (
        lambda: generators.DownResnet(
            channels=4, blocks=2, scale=8, norm="pixel", rngs=nnx.Rngs(0)
        ),
        lambda: torch_generators.DownResnet(channels=4, blocks=2, scale=8),
        1,
    ),
    **{
        f"PatchGAN of {strided}": (
            lambda strided=strided: discriminators.PatchDiscriminator(
                **PATCH, strided=strided, rngs=nnx.Rngs(0)
            ),
            lambda strided=strided: torch_discriminators.PatchDiscriminator(
                **PATCH, strided=strided
            ),
            1,
        )
        for strided in (2, 3)
    },
    "three scales": (
        lambda: discriminators.MultiScaleDiscriminator(
            **PATCH, layers=4, scales=3, rngs=nnx.Rngs(0)
        ),
        lambda: torch_discriminators.MultiScaleDiscriminator(**PATCH, layers=4, scales=3),
        1,
    ),
    **{
        f"encoder, strided={strided}": (
            lambda strided=strided: unit.Encoder(
                widths=(4, 6, 8), strided=strided, blocks=1, norm="pixel", rngs=nnx.Rngs(0)
            ),
            lambda strided=strided: torch_autoencoders.Encoder(
                widths=(4, 6, 8), strided=strided, blocks=1
            ),
            1,
        )
        for strided in (False, True)
    },
    **{
        f"decoder, upsample={upsample}": (
            lambda upsample=upsample: unit.Decoder(
                widths=(8, 6, 4), upsample=upsample, blocks=1, norm="pixel", rngs=nnx.Rngs(0)
            ),
            lambda upsample=upsample: torch_autoencoders.Decoder(
                widths=(8, 6, 4), upsample=upsample, blocks=1
            ),
            8,
        )
        for upsample in ("nearest", "shuffle", None)
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_other_networks_give_what_ours_give(name: str) -> None:
    make_ours, make_theirs, channels = NETWORKS[name]
    ours, theirs = make_ours(), make_theirs()
    with_random_weights(ours, theirs)
    size = MICRO_PX if channels == 1 else CLINICAL_PX
    images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, channels))
    assert_same_outputs(ours, theirs, images.astype(np.float32))


def test_weights_of_another_architecture_are_refused() -> None:
    ours = generators.SrResnet(**SR, scale=4, norm="pixel", upsample="nearest", rngs=nnx.Rngs(0))
    weights = named_weights(nnx.to_pure_dict(nnx.state(ours)))
    with pytest.raises(RuntimeError, match="upsampling"):
        copy_weights(weights, torch_generators.SrResnet(**SR, scale=8, upsample="nearest"))


# Losses and gradients


def config_of(method: str, networks: NetworksConfig) -> Config:
    return Config(
        method=method,
        pool_size=0,
        data=DataConfig(clinical_patch_px=CLINICAL_PX),
        networks=networks,
        optimizer=OptimizerConfig(l2=1e-4 if method == "unit" else 0.0),
    )


def random_batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {"clinical": CLINICAL_PX, "micro": MICRO_PX}
    return {
        domain: rng.uniform(-1, 1, (BATCH_SIZE, size, size, 1)).astype(np.float32)
        for domain, size in sizes.items()
    }


def batch_for_torch(seed: int) -> dict[str, Any]:
    return {domain: to_torch(images) for domain, images in random_batch(seed).items()}


def noise_for_torch(config: Config, key: jax.Array) -> dict[str, Any]:
    """What SR-UNIT draws from a key."""
    shape = (BATCH_SIZE, CLINICAL_PX, CLINICAL_PX, config.networks.unit_channels)
    noise = {}
    for number, prefix in enumerate(("", "cycle_")):
        keys = jax.random.split(jax.random.fold_in(key, number))
        for domain, domain_key in zip(("clinical", "micro"), keys, strict=True):
            noise[prefix + domain] = to_torch(jax.random.normal(domain_key, shape))
    return noise


def start(config: Config) -> TrainState:
    """Our state at step 0, with biases that are not zero."""
    state = create_train_state(config, methods.create(config))
    biases = random_weights(jax.random.key(1), state.params)
    params = jax.tree.map(
        lambda weight, bias: bias if bias.ndim == 1 else weight, state.params, biases
    )
    return state._replace(params=params)


def torch_method(config: Config) -> Any:
    method = create_method(config)
    copy_weights(named_weights(start(config).params), method)
    return method


def our_losses(config: Config) -> tuple[Tree, Tree]:
    """Fakes and terms of a batch."""
    method, batch, key = methods.create(config), random_batch(0), jax.random.key(2)

    def losses(params: Tree) -> tuple[Tree, Tree]:
        _, (fakes, terms) = method.generator_loss(params, batch, key)
        _, more_terms = method.discriminator_loss(params, fakes, batch)
        return fakes, {**terms, **more_terms}

    return jax.device_get(quick(losses)(start(config).params))


def our_gradients(config: Config) -> dict[str, np.ndarray]:
    """By PyTorch's names and axes."""
    method, params = methods.create(config), start(config).params
    batch, key = random_batch(0), jax.random.key(2)

    def of_generators(generators: Tree) -> Tree:
        return method.generator_loss({**params, "generators": generators}, batch, key)

    def of_discriminators(discriminators: Tree, fakes: Tree) -> Tree:
        return method.discriminator_loss({**params, "discriminators": discriminators}, fakes, batch)

    gradients = {}
    gradients["generators"], (fakes, _) = quick(jax.grad(of_generators, has_aux=True))(
        params["generators"]
    )
    gradients["discriminators"], _ = quick(jax.grad(of_discriminators, has_aux=True))(
        params["discriminators"], fakes
    )
    in_torch = create_method(config)
    copy_weights(named_weights(gradients), in_torch)
    return {name: array.detach().numpy() for name, array in in_torch.named_parameters()}


def torch_losses(config: Config) -> tuple[Any, Any, Any]:
    """Fakes, terms and gradients of the same batch, with the same noise."""
    method, batch = torch_method(config), batch_for_torch(0)
    loss, fakes, terms = method.generator_loss(batch, noise_for_torch(config, jax.random.key(2)))
    loss.backward()
    method.discriminators.zero_grad()
    loss, more_terms = method.discriminator_loss(fakes, batch)
    loss.backward()
    gradients = {name: array.grad.numpy() for name, array in method.named_parameters()}
    return fakes, terms | more_terms, gradients


@pytest.mark.parametrize("method", METHODS)
def test_every_network_has_as_many_parameters_as_ours(method: str) -> None:
    config = config_of(method, NetworksConfig())
    params = jax.eval_shape(methods.create(config).init, jax.random.key(0))
    theirs = create_method(config)
    for branch, networks in params.items():
        expected = {
            name: sum(leaf.size for leaf in jax.tree.leaves(network))
            for name, network in networks.items()
        }
        got = {
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in getattr(theirs, branch).items()
        }
        assert got == expected


@pytest.mark.parametrize("networks", [TINY, NetworksConfig()], ids=["tiny", "true widths"])
@pytest.mark.parametrize("method", METHODS)
def test_fakes_and_every_term_are_ours(method: str, networks: NetworksConfig) -> None:
    config = config_of(method, networks)
    (expected_fakes, expected_terms), (fakes, terms, _) = our_losses(config), torch_losses(config)
    for domain, fake in expected_fakes.items():
        assert fake.std() > 0.01
        np.testing.assert_allclose(fakes[domain], to_torch(fake), rtol=0, atol=1e-4)
    got, expected = (
        {name: float(term) for name, term in side.items()} for side in (terms, expected_terms)
    )
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_ours(method: str) -> None:
    """A bias before an instance norm has none but rounding: hence the second tolerance."""
    config = config_of(method, TINY)
    expected, (_, _, gradients) = our_gradients(config), torch_losses(config)
    for branch in ("generators", "discriminators"):
        names = [name for name in expected if name.startswith(branch)]
        largest = max(np.abs(expected[name]).max() for name in names)
        for name in names:
            tolerance = 1e-4 * np.abs(expected[name]).max() + 1e-5 * largest
            np.testing.assert_allclose(
                gradients[name], expected[name], rtol=0, atol=tolerance, err_msg=name
            )


# Steps


@pytest.mark.parametrize("method", METHODS)
def test_steps_train_as_ours(method: str) -> None:
    """Adam's first updates are the learning rate times the gradient's sign, which rounding decides
    where the gradient is nearly zero: hence a wider tolerance than that of the losses.
    """
    config = config_of(method, TINY)
    config.optimizer.learning_rate = 2e-3
    state, batch = start(config), random_batch(0)
    mesh = data_mesh(jax.devices()[:1])
    our_step = make_train_step(config, methods.create(config), mesh).lower(state, batch)
    our_step = our_step.compile(compiler_options=FAST_COMPILATION)
    their_step = TrainStep(torch_method(config))
    key, sums = jax.random.wrap_key_data(np.asarray(state.key)), []
    for step in range(4):
        noise_key = jax.random.split(jax.random.fold_in(key, step), 1)[0]
        state, _ = our_step(state, batch)
        their_step(batch_for_torch(0), noise_for_torch(config, noise_key))
        sums.append({name: float(value) for name, value in state.metric_sums.items()})
        got = {name: float(value) for name, value in their_step.metric_sums.items()}
        assert got == pytest.approx(sums[-1], rel=1e-3, abs=1e-3)
    untrained = len(sums) * sums[0]["generator_loss"]
    assert abs(sums[-1]["generator_loss"] / untrained - 1) > 0.02


def test_half_of_the_fakes_are_exchanged_for_older_ones_which_leave_the_pool() -> None:
    size, rows, shown = 3, 2, []
    pool = ImagePool(size * rows - 1, torch.zeros(rows, 1, 1, 1))
    for first in range(0, 800, rows):
        fakes = torch.tensor([first, first + 1.0]).reshape(rows, 1, 1, 1)
        shown += pool.exchange(fakes).flatten().tolist()
    newest = [value == index for index, value in enumerate(shown)]
    assert all(newest[: size * rows])
    assert 300 < sum(newest) < 500
    assert all(value <= index and value % rows == index % rows for index, value in enumerate(shown))
    times = collections.Counter(shown)
    assert all(count <= (2 if value < size * rows else 1) for value, count in times.items())
