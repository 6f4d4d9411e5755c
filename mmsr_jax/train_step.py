"""One training step as one pure function, compiled once over the whole mesh."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from mmsr_jax.config import Config
from mmsr_jax.image_pool import exchange
from mmsr_jax.mesh import replicated, split_batch
from mmsr_jax.methods import Images, Method
from mmsr_jax.train_state import TrainState, create_optimizer

TrainStep = Callable[[TrainState, Images], tuple[TrainState, Array]]


def make_train_step(config: Config, method: Method, mesh: Mesh) -> TrainStep:
    """The jitted (state, batch) → (state, step); the state is donated.

    Both generators are updated jointly with the discriminators frozen, then both discriminators on
    the same, pre-update fakes, handed through the image pools. The returned step number is a value
    to wait for: nothing else of a step needs to reach the host.
    """
    optimizer = create_optimizer(config)

    def train_step(state: TrainState, batch: Images) -> tuple[TrainState, Array]:
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        method_key, *pool_keys = jax.random.split(step_key, 1 + len(state.pools))

        def loss_of_generators(generators: dict) -> tuple[Array, tuple]:
            return method.generator_loss(
                {**state.params, "generators": generators}, batch, method_key
            )

        def loss_of_discriminators(discriminators: dict, fakes: Images) -> tuple[Array, dict]:
            return method.discriminator_loss(
                {**state.params, "discriminators": discriminators}, fakes, batch
            )

        gradients = {}
        gradients["generators"], (fakes, terms) = jax.grad(loss_of_generators, has_aux=True)(
            state.params["generators"]
        )
        pools, seen = {}, dict(fakes)
        for domain, key in zip(sorted(state.pools), pool_keys, strict=True):
            pools[domain], seen[domain] = exchange(state.pools[domain], fakes[domain], key)
        gradients["discriminators"], more_terms = jax.grad(loss_of_discriminators, has_aux=True)(
            state.params["discriminators"], seen
        )

        params, opt_states = {}, {}
        for branch in state.params:
            updates, opt_states[branch] = optimizer.update(
                gradients[branch], state.opt_states[branch], state.params[branch]
            )
            params[branch] = optax.apply_updates(state.params[branch], updates)
        sums = {
            name: state.metric_sums[name] + value for name, value in {**terms, **more_terms}.items()
        }
        step = state.step + 1
        return TrainState(step, params, opt_states, pools, state.key, sums), step + 0

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
