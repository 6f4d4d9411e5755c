"""All that a resumed run needs, in one pytree, and the optimisers that change it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mmsr_jax.config import Config, OptimizerConfig
from mmsr_jax.image_pool import ImagePool, empty_pool
from mmsr_jax.mesh import replicated, split_batch
from mmsr_jax.methods import Images, Method, Params, Terms


class TrainState(NamedTuple):
    """One pytree: parameters, optimisers, image pools, random key, and the running metric sums."""

    step: Int[Array, ""]
    params: Params
    opt_states: dict[str, Any]
    pools: dict[str, ImagePool]  # by domain; none without pooling
    key: Array
    metric_sums: dict[str, Array]  # over the steps since the last logging


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """Linear to `learning_rate`, constant, then linear to zero over the last `decay_fraction`.

    The rise takes `warmup_steps`; step 0 already moves the parameters.
    """
    decay_steps = max(1, round(steps * config.decay_fraction))
    decay = optax.linear_schedule(
        config.learning_rate, 0.0, decay_steps, transition_begin=steps - decay_steps
    )

    def learning_rate(step: Any) -> Any:
        return decay(step) * jnp.minimum(1.0, (step + 1) / (config.warmup_steps + 1))

    return learning_rate


def create_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam; generators and discriminators get one each.

    When gradients grow suddenly, Adam's running variance lags and steps become many learning rates
    long; `clip_update_rms` bounds them (Shazeer and Stern 2018, section 6).
    """
    optimizer = config.optimizer
    steps = [optax.add_decayed_weights(optimizer.l2)] if optimizer.l2 else []
    steps.append(optax.scale_by_adam(b1=optimizer.beta_1, b2=optimizer.beta_2))
    if optimizer.clip_update_rms:
        steps.append(optax.clip_by_block_rms(optimizer.clip_update_rms))
    schedule = learning_rate_schedule(optimizer, config.steps)
    return optax.chain(*steps, optax.scale_by_learning_rate(schedule))


def create_train_state(config: Config, method: Method) -> TrainState:
    """The state at step 0, a function of the configuration alone."""
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    params = method.init(init_key)
    optimizer = create_optimizer(config)
    fakes, terms = _shapes(config, method, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_states={branch: optimizer.init(params[branch]) for branch in params},
        pools={
            name: empty_pool(config.pool_size, config.batch_size, fake.shape[1:])
            for name, fake in fakes.items()
            if config.pool_size  # an array of no images is no checkpoint's
        },
        key=jax.random.key_data(step_key),
        metric_sums={name: jnp.zeros((), jnp.float32) for name in terms},
    )


def state_sharding(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of a state is: image pools with the rows of the batch, the rest everywhere.

    Args:
      state: arrays or shapes.
      mesh: of the run.
    """
    everywhere = replicated(mesh)
    pools = {
        domain: ImagePool(split_batch(mesh), everywhere)  # type: ignore[arg-type]
        for domain in state.pools
    }
    return jax.tree.map(lambda _: everywhere, state)._replace(pools=pools)


def batch_shapes(config: Config, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of a batch of training patches, by domain."""
    clinical_px = config.data.clinical_patch_px
    sides = {"clinical": clinical_px, "micro": clinical_px * config.data.scale}
    return {
        domain: jax.ShapeDtypeStruct((batch_size, side, side, 1), jnp.float32)
        for domain, side in sides.items()
    }


def _shapes(config: Config, method: Method, params: Params) -> tuple[Images, Terms]:
    """Shapes of the fakes that the discriminators see, and all terms by name."""
    batch = batch_shapes(config, 1)
    _, (fakes, terms) = jax.eval_shape(method.generator_loss, params, batch, jax.random.key(0))
    _, more_terms = jax.eval_shape(method.discriminator_loss, params, fakes, batch)
    return fakes, {**terms, **more_terms}
