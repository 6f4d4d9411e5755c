import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import UserError
from mmsr_jax.inference import memory
from mmsr_jax.inference.memory import plan
from mmsr_jax.inference.network import Network
from mmsr_jax.inference.tiles import super_resolve_slices

SCALE, CHANNELS = 4, 32
SEEN = (96, 128)


def network(trunk_reach_px: float | None = 1.0, tail_reach_px: float | None = 0.0) -> Network:
    """Many channels at low resolution, that a trunk of one convolution makes."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 1, CHANNELS)), jnp.float32)

    def trunk(images: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"),
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def tail(features: jax.Array) -> jax.Array:
        mean = jnp.tanh(features.mean(axis=-1, keepdims=True))
        return mean.repeat(SCALE, 1).repeat(SCALE, 2)

    return Network(jax.jit(trunk), jax.jit(tail), SCALE, trunk_reach_px, tail_reach_px)


FEATURES_BYTES = 4 * CHANNELS * SEEN[0] * SEEN[1]


def test_with_memory_to_spare_the_trunk_sees_whole_slices_and_tiles_are_large() -> None:
    model = network()
    ample = plan(model, SEEN, 10**9)
    assert ample.network is model
    assert ample.tile_px == 128
    assert FEATURES_BYTES < ample.bytes < 10**9


def test_less_memory_makes_smaller_tiles_and_then_fuses_the_trunk() -> None:
    model = network()
    tiles, fused = [], []
    budgets = np.geomspace(4 * FEATURES_BYTES, FEATURES_BYTES / 12, 40).astype(int).tolist()
    for budget in budgets:
        chosen = plan(model, SEEN, budget)
        assert chosen.bytes <= budget
        tiles.append(chosen.tile_px)
        fused.append(chosen.network is not model)
    assert fused == sorted(fused)  # whole trunks first
    assert fused[0] is False
    assert fused[-1] is True
    for kind in (False, True):
        sizes = [tile for tile, is_fused in zip(tiles, fused, strict=True) if is_fused is kind]
        assert sizes == sorted(sizes, reverse=True)
    assert tiles[-1] < 128


def test_what_is_chosen_gives_the_same_in_every_budget() -> None:
    model = network()
    images = np.random.default_rng(0).uniform(-1, 1, (1, *SEEN)).astype(np.float32)
    results = [
        super_resolve_slices(chosen.network, images, tile_px=chosen.tile_px)
        for chosen in (plan(model, SEEN, budget) for budget in (10**9, FEATURES_BYTES // 12))
    ]
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("reach", [(None, 0.0), (0.0, None)])
def test_networks_that_see_the_whole_slice_are_never_fused(
    reach: tuple[float | None, float | None],
) -> None:
    model = network(*reach)
    assert plan(model, SEEN, 10**9).network is model
    with pytest.raises(UserError, match=r"slices of 128 x 96 pixels need .* GB at once and"):
        plan(model, SEEN, FEATURES_BYTES // 12)


def test_by_default_half_of_the_memory_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1)  # a machine of one byte
    with pytest.raises(UserError, match="memory may be used"):
        plan(network(), SEEN)
