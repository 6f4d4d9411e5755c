"""SR-CycleGAN (Zheng et al.): CycleGAN across a scale gap, held to the scan by the MMSR loss.

`create_original` is the CycleGAN they compare with: the canonical networks, all at micro size.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mmsr_jax.config import Config
from mmsr_jax.losses import reconstruction_loss
from mmsr_jax.methods import terms
from mmsr_jax.methods.functional import Constructors, networks
from mmsr_jax.methods.method import Images, Method, Params, SuperResolution, Terms, unsplit
from mmsr_jax.networks.discriminators import PatchDiscriminator
from mmsr_jax.networks.generators import DownResnet, SrResnet
from mmsr_jax.networks.same_size import ResnetGenerator


def create(config: Config) -> Method:
    """SR-CycleGAN for a configuration."""
    nets, dtype = config.networks, jnp.dtype(config.compute_dtype)
    generator: dict[str, Any] = {"scale": config.data.scale, "norm": nets.norm, "dtype": dtype}
    generators: dict[str, Any] = {
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
    }
    discriminator = _discriminator(config)
    discriminators: dict[str, Any] = {
        "clinical": partial(discriminator, strided=2),
        "micro": partial(discriminator, strided=3),
    }
    constructors: Constructors = {"generators": generators, "discriminators": discriminators}
    return _cyclegan(config, constructors, terms.own_grid())


def create_original(config: Config) -> Method:
    """CycleGAN with same-size networks on bicubically upsampled clinical images."""
    nets = config.networks
    generator = partial(
        ResnetGenerator,
        channels=nets.original_channels,
        blocks=nets.original_blocks,
        dtype=jnp.dtype(config.compute_dtype),
    )
    discriminator = partial(_discriminator(config), strided=3)
    constructors: Constructors = {
        "generators": {"clinical_to_micro": generator, "micro_to_clinical": generator},
        "discriminators": {"clinical": discriminator, "micro": discriminator},
    }
    return _cyclegan(config, constructors, terms.micro_grid(config.data.scale))


def _discriminator(config: Config) -> partial[PatchDiscriminator]:
    return partial(
        PatchDiscriminator,
        channels=config.networks.discriminator_channels,
        max_channels=config.networks.discriminator_max_channels,
        dtype=jnp.dtype(config.compute_dtype),
    )


def _cyclegan(config: Config, constructors: Constructors, grid: terms.ClinicalGrid) -> Method:
    init, apply, modules = networks(constructors, config.remat)

    def cycles(params: Params, clinical: Array, micro: Array) -> Images:
        """All on the networks' grids; `clinical` has entered."""
        to_micro = partial(apply, params, "generators", "clinical_to_micro")
        to_clinical = partial(apply, params, "generators", "micro_to_clinical")
        sr, fake = to_micro(clinical), to_clinical(micro)
        return {
            "sr": sr,
            "fake_clinical": fake,
            "cycle_clinical": to_clinical(sr),
            "cycle_micro": to_micro(fake),
        }

    def translate(params: Params, batch: Images) -> Images:
        images = cycles(params, grid.enter(batch["clinical"]), batch["micro"])
        return images | {
            name: grid.leave(images[name]) for name in ("fake_clinical", "cycle_clinical")
        }

    def generator_loss(
        params: Params, batch: Images, key: Array
    ) -> tuple[Array, tuple[Images, Terms]]:
        del key  # nothing here is random
        clinical, micro = grid.enter(batch["clinical"]), batch["micro"]
        images = cycles(params, clinical, micro)
        fakes = {"clinical": images["fake_clinical"], "micro": images["sr"]}
        adversarial = terms.adversarial(partial(apply, params, "discriminators"), fakes)
        cycle = {
            "cycle_clinical": reconstruction_loss(clinical, images["cycle_clinical"]),
            "cycle_micro": reconstruction_loss(micro, images["cycle_micro"]),
        }
        identity = _identity(params, clinical, micro) if config.loss.identity else {}
        mmsr, mmsr_terms = terms.mmsr(
            config.loss, batch, images["sr"], grid.leave(fakes["clinical"])
        )
        loss = (
            sum(adversarial.values())
            + config.loss.cycle * sum(cycle.values())
            + config.loss.identity * sum(identity.values())
            + mmsr
        )
        named = {**adversarial, **cycle, **identity, **mmsr_terms, "generator_loss": loss}
        return loss, (fakes, {**named, **terms.watch(batch["clinical"], images["sr"])})

    def _identity(params: Params, clinical: Array, micro: Array) -> Terms:
        to_micro = apply(params, "generators", "clinical_to_micro", micro)
        to_clinical = apply(params, "generators", "micro_to_clinical", clinical)
        return {
            "identity_clinical": reconstruction_loss(clinical, to_clinical),
            "identity_micro": reconstruction_loss(micro, to_micro),
        }

    def super_resolution() -> SuperResolution:
        def part(params: Params, images: Any, name: str = "__call__") -> Any:
            return apply(params, "generators", "clinical_to_micro", images, name)

        generator = modules["generators"]["clinical_to_micro"]
        if not isinstance(generator, SrResnet):
            return unsplit(lambda params, clinical: part(params, grid.enter(clinical)))
        return SuperResolution(
            partial(part, name="trunk"),
            partial(part, name="tail"),
            generator.trunk_reach_px,
            generator.tail_reach_px,
        )

    discriminator_loss = terms.discriminator_loss(apply, grid)
    return Method(init, generator_loss, discriminator_loss, super_resolution(), translate)
