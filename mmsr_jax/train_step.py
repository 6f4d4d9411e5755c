"""One training step as one pure function, compiled once over the whole mesh."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped
from jaxtyping import Array

from data_pipelines.resident import Draws, ResidentPatches, draw, make_batch
from mmsr_jax.config import Config
from mmsr_jax.image_pool import exchange
from mmsr_jax.mesh import replicated, split_batch
from mmsr_jax.methods import Images, Method
from mmsr_jax.train_state import (
    TrainState,
    create_optimizer,
    create_train_state,
    state_sharding,
)

TrainStep = Callable[[TrainState, Images], tuple[TrainState, Array]]


def make_train_step(config: Config, method: Method, mesh: Mesh) -> Wrapped:
    """The jitted (state, batch) → (state, step); the state is donated except on a CPU.

    Both generators are updated jointly with the discriminators frozen, then both discriminators on
    the same, pre-update fakes, handed through the image pools. The returned step number is a value
    to wait for: nothing else of a step needs to reach the host.
    """
    state = _sharding_of_state(config, method, mesh)
    return jax.jit(
        _train_step(config, method),
        in_shardings=(state, split_batch(mesh)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=_donated(mesh),
    )


def make_resident_train_steps(config: Config, method: Method, mesh: Mesh) -> Wrapped:
    """The jitted (state, resident patches) → (state, step) of `config.steps_per_dispatch` steps.

    Each is a step of `make_train_step` on a batch that it draws itself; donated alike.
    """
    train_step = _train_step(config, method)

    def train_steps(
        state: TrainState, resident: dict[str, ResidentPatches]
    ) -> tuple[TrainState, Array]:
        def one(state: TrainState, draws: dict[str, Draws]) -> tuple[TrainState, Array]:
            batch = make_batch(resident, draws, augment=config.data.augment)
            return train_step(state, jax.lax.with_sharding_constraint(batch, split_batch(mesh)))

        draws = draw(
            resident,
            state.step,
            config.steps_per_dispatch,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        if config.steps_per_dispatch == 1:  # a CPU's convolutions are slow in loops (jaxlib 0.10.2)
            return one(state, jax.tree.map(lambda leaf: leaf[0], draws))
        state, steps = jax.lax.scan(one, state, draws)
        return state, steps[-1]

    state = _sharding_of_state(config, method, mesh)
    return jax.jit(
        train_steps,
        in_shardings=(state, replicated(mesh)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=_donated(mesh),
    )


def _sharding_of_state(config: Config, method: Method, mesh: Mesh) -> TrainState:
    return state_sharding(jax.eval_shape(lambda: create_train_state(config, method)), mesh)


def _donated(mesh: Mesh) -> tuple[int, ...]:
    """The state; a CPU would copy it, which takes a seventh of the step (jaxlib 0.10.2)."""
    return () if mesh.devices.flat[0].platform == "cpu" else (0,)


def _train_step(config: Config, method: Method) -> TrainStep:
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

    return train_step
