import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from benchmarks.inputs import named_weights  # noqa: E402
from benchmarks.torch_networks import SrResnet, copy_weights  # noqa: E402
from mmsr_jax.networks import generators  # noqa: E402

SIZES = {"channels": 8, "blocks": 2, "tail_channels": 6}


def random_weights(key: jax.Array, params: object) -> dict[str, np.ndarray]:
    """Biases too, which start as zeros."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(tree, drawn)


def pair(scale: int, seed: int) -> tuple[generators.SrResnet, torch.nn.Module]:
    ours = generators.SrResnet(
        **SIZES, scale=scale, norm="pixel", upsample="nearest", rngs=nnx.Rngs(0)
    )
    params = random_weights(jax.random.key(seed), nnx.to_pure_dict(nnx.state(ours)))
    nnx.update(ours, params)
    theirs = SrResnet(**SIZES, scale=scale).eval()
    copy_weights(named_weights(params), theirs)
    return ours, theirs


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(4, 13),
    st.integers(4, 13),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 99),
)
def test_pytorch_gives_what_ours_gives(
    n: int, rows: int, columns: int, scale: int, seed: int
) -> None:
    ours, theirs = pair(scale, seed)
    images = np.random.default_rng(seed).uniform(-1, 1, (n, rows, columns, 1)).astype(np.float32)
    with torch.inference_mode():
        got = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    expected = np.asarray(ours(jnp.asarray(images)))
    assert expected.std() > 0.05
    np.testing.assert_allclose(got.transpose(0, 2, 3, 1), expected, rtol=0, atol=1e-4)


def test_weights_of_another_architecture_are_refused() -> None:
    ours, _ = pair(4, 0)
    weights = named_weights(nnx.to_pure_dict(nnx.state(ours)))
    with pytest.raises(RuntimeError, match="upsampling"):
        copy_weights(weights, SrResnet(**SIZES, scale=8))
