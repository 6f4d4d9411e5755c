"""What the methods' losses have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmsr_jax.config import LossConfig
from mmsr_jax.losses import (
    average_pool,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
    mmsr_loss,
)
from mmsr_jax.methods.method import Images, Params, Terms
from mmsr_jax.resampling import bicubic_upsample

DOMAINS = ("clinical", "micro")


class ClinicalGrid(NamedTuple):
    """On which grid a method's networks see clinical images.

    Attributes:
      enter: clinical images → what the networks see.
      leave: what the networks give → clinical images.
    """

    enter: Callable[[Array], Array]
    leave: Callable[[Array], Array]


def own_grid() -> ClinicalGrid:
    """Networks that cross the scale gap themselves."""
    return ClinicalGrid(lambda clinical: clinical, lambda clinical: clinical)


def micro_grid(scale: int) -> ClinicalGrid:
    """Networks of one size: clinical images come bicubically upsampled."""
    return ClinicalGrid(
        lambda clinical: jnp.clip(bicubic_upsample(clinical, scale), -1.0, 1.0),
        lambda raised: average_pool(raised, scale),
    )


def in_one_batch(function: Callable[[Array], Any], a: Array, b: Array) -> tuple[Any, Any]:
    """What `function` gives of two batches of n images, computed as one of 2·n.

    Their images alternate, so that each stays on the device that has it.
    """
    both = jnp.stack([a, b], axis=1)
    outputs = function(both.reshape(-1, *a.shape[1:]))
    pairs = jax.tree.map(lambda output: output.reshape(*both.shape[:2], *output.shape[1:]), outputs)
    return jax.tree.map(lambda pair: pair[:, 0], pairs), jax.tree.map(
        lambda pair: pair[:, 1], pairs
    )


def adversarial(discriminate: Callable[[str, Array], Any], fakes: Images) -> Terms:
    """The generators' LSGAN term of each domain, summed over a discriminator's scales."""
    return {
        f"adversarial_{domain}": jnp.asarray(
            sum(map(lsgan_generator_loss, jax.tree.leaves(discriminate(domain, fakes[domain]))))
        )
        for domain in DOMAINS
    }


def discriminator_loss(
    apply: Callable[[Params, str, str, Array], Any], grid: ClinicalGrid
) -> Callable[[Params, Images, Images], tuple[Array, Terms]]:
    """`Method.discriminator_loss`: LSGAN in each domain, reals and fakes in one batch."""

    def loss(params: Params, fakes: Images, batch: Images) -> tuple[Array, Terms]:
        reals = {"clinical": grid.enter(batch["clinical"]), "micro": batch["micro"]}
        terms = {}
        for domain in DOMAINS:
            discriminate = partial(apply, params, "discriminators", domain)
            scores = in_one_batch(discriminate, reals[domain], fakes[domain])
            scales = zip(*map(jax.tree.leaves, scores), strict=True)
            terms[f"discriminator_{domain}"] = jnp.asarray(
                sum(lsgan_discriminator_loss(real, fake) for real, fake in scales)
            )
        return jnp.asarray(sum(terms.values())), terms

    return loss


def mmsr(config: LossConfig, batch: Images, sr: Array, fake_clinical: Array) -> tuple[Array, Terms]:
    """The weighted MMSR loss and its four terms; `fake_clinical` is on the clinical grid."""
    return mmsr_loss(
        batch["clinical"],
        sr,
        batch["micro"],
        fake_clinical,
        weights=(config.lambda_1, config.lambda_2, config.lambda_3, config.lambda_4),
        pixel=config.pixel_loss,
        constants=config.ssim_constants,
        window=config.ssim_window,
        luminance_factor=config.luminance_factor,
    )


def watch(clinical: Array, sr: Array) -> Terms:
    """Two warning lights: agreement with the scan (−1: inverted) and contrast (0: blank)."""
    pooled = average_pool(sr, sr.shape[1] // clinical.shape[1])
    a, b = (x - x.mean(axis=(1, 2), keepdims=True) for x in (clinical, pooled))
    power = jnp.sqrt(jnp.mean(a**2, axis=(1, 2, 3)) * jnp.mean(b**2, axis=(1, 2, 3)))
    correlation = jnp.mean(a * b, axis=(1, 2, 3)) / (power + 1e-8)
    contrast = sr.std(axis=(1, 2, 3)) / (clinical.std(axis=(1, 2, 3)) + 1e-8)
    return {"correlation": correlation.mean(), "contrast": contrast.mean()}
