"""SR-CycleGAN (Zheng et al.): CycleGAN across a scale gap, held to the scan by the MMSR loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mmsr_jax.config import Config
from mmsr_jax.losses import (
    average_pool,
    cycle_loss,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
    mmsr_loss,
)
from mmsr_jax.methods.method import Images, Method, Params, Terms
from mmsr_jax.networks.discriminators import PatchDiscriminator
from mmsr_jax.networks.generators import DownResnet, SrResnet

Constructors = dict[str, dict[str, Callable[..., Any]]]


def create(config: Config) -> Method:
    """SR-CycleGAN for a configuration."""
    constructors = _constructors(config)
    modules = jax.tree.map(
        lambda make: nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), constructors
    )
    graphs = jax.tree.map(nnx.graphdef, modules, is_leaf=lambda node: isinstance(node, nnx.Module))

    def init(key: Array) -> Params:
        rngs = nnx.Rngs(key)
        return jax.tree.map(lambda make: nnx.to_pure_dict(nnx.state(make(rngs=rngs))), constructors)

    def apply(params: Params, branch: str, name: str, images: Array) -> Array:
        return nnx.merge(graphs[branch][name], params[branch][name])(images)

    def translate(params: Params, batch: Images) -> Images:
        sr = apply(params, "generators", "clinical_to_micro", batch["clinical"])
        fake_clinical = apply(params, "generators", "micro_to_clinical", batch["micro"])
        return {
            "sr": sr,
            "fake_clinical": fake_clinical,
            "cycle_clinical": apply(params, "generators", "micro_to_clinical", sr),
            "cycle_micro": apply(params, "generators", "clinical_to_micro", fake_clinical),
        }

    def generator_loss(
        params: Params, batch: Images, key: Array
    ) -> tuple[Array, tuple[Images, Terms]]:
        del key  # nothing here is random
        images = translate(params, batch)
        fakes = {"clinical": images["fake_clinical"], "micro": images["sr"]}
        adversarial = {
            f"adversarial_{domain}": lsgan_generator_loss(
                apply(params, "discriminators", domain, fakes[domain])
            )
            for domain in ("clinical", "micro")
        }
        cycle = {
            f"cycle_{domain}": cycle_loss(batch[domain], images[f"cycle_{domain}"])
            for domain in ("clinical", "micro")
        }
        mmsr, mmsr_terms = _mmsr(config, batch, fakes)
        loss = sum(adversarial.values()) + config.loss.cycle * sum(cycle.values()) + mmsr
        terms = {**adversarial, **cycle, **mmsr_terms, "generator_loss": loss}
        return loss, (fakes, {**terms, **_watch(batch["clinical"], fakes["micro"])})

    def discriminator_loss(params: Params, fakes: Images, batch: Images) -> tuple[Array, Terms]:
        terms = {}
        for domain in ("clinical", "micro"):
            both = jnp.concatenate([batch[domain], fakes[domain]])
            real, fake = jnp.split(apply(params, "discriminators", domain, both), 2)
            terms[f"discriminator_{domain}"] = lsgan_discriminator_loss(real, fake)
        return jnp.asarray(sum(terms.values())), terms

    def super_resolve(params: Params, clinical: Array) -> Array:
        return apply(params, "generators", "clinical_to_micro", clinical)

    reach_px = modules["generators"]["clinical_to_micro"].reach_px
    return Method(init, generator_loss, discriminator_loss, super_resolve, translate, reach_px)


def _constructors(config: Config) -> Constructors:
    nets, dtype = config.networks, jnp.dtype(config.compute_dtype)
    generator: dict[str, Any] = {"scale": config.data.scale, "norm": nets.norm, "dtype": dtype}
    discriminator = partial(
        PatchDiscriminator,
        channels=nets.discriminator_channels,
        max_channels=nets.discriminator_max_channels,
        dtype=dtype,
    )
    return {
        "generators": {
            "clinical_to_micro": partial(
                SrResnet,
                channels=nets.sr_channels,
                blocks=nets.sr_blocks,
                tail_channels=nets.sr_tail_channels,
                upsample=nets.upsample,
                base=nets.base,
                **generator,
            ),
            "micro_to_clinical": partial(
                DownResnet, channels=nets.down_channels, blocks=nets.down_blocks, **generator
            ),
        },
        "discriminators": {
            "clinical": partial(discriminator, strided=2),
            "micro": partial(discriminator, strided=3),
        },
    }


def _mmsr(config: Config, batch: Images, fakes: Images) -> tuple[Array, Terms]:
    loss = config.loss
    return mmsr_loss(
        batch["clinical"],
        fakes["micro"],
        batch["micro"],
        fakes["clinical"],
        weights=(loss.lambda_1, loss.lambda_2, loss.lambda_3, loss.lambda_4),
        pixel=loss.pixel_loss,
        constants=loss.ssim_constants,
        window=loss.ssim_window,
        luminance_factor=loss.luminance_factor,
    )


def _watch(clinical: Array, sr: Array) -> Terms:
    """Two warning lights: agreement with the scan (−1: inverted) and contrast (0: blank)."""
    pooled = average_pool(sr, sr.shape[1] // clinical.shape[1])
    a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (clinical, pooled))
    power = jnp.sqrt(jnp.mean(a**2, axis=(1, 2, 3)) * jnp.mean(b**2, axis=(1, 2, 3)))
    correlation = jnp.mean(a * b, axis=(1, 2, 3)) / (power + 1e-8)
    contrast = sr.std(axis=(1, 2, 3)) / (clinical.std(axis=(1, 2, 3)) + 1e-8)
    return {"correlation": correlation.mean(), "contrast": contrast.mean()}
