"""SR-UNIT (Zheng et al.): UNIT across a scale gap, held to the scan by the MMSR loss.

Both domains share one latent code on the clinical grid (Liu et al. 2017): private encoders, one
shared residual block to the code's mean, one shared residual block back, private decoders.
`create_original` is the UNIT they compare with: all at micro size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from data_pipelines.errors import UserError
from mmsr_jax.config import Config
from mmsr_jax.losses import kl_loss, reconstruction_loss
from mmsr_jax.methods import terms
from mmsr_jax.methods.functional import Constructors, networks
from mmsr_jax.methods.method import Images, Method, Params, SuperResolution, Terms, unsplit
from mmsr_jax.networks.blocks import Norm, ResidualBlock
from mmsr_jax.networks.discriminators import MultiScaleDiscriminator
from mmsr_jax.networks.unit import Decoder, Encoder

_LAYERS, _SCALES = 4, 3  # of the micro discriminator
_CLINICAL_LAYERS = 3  # of the clinical one, whose patches have no room for more scales


def create(config: Config) -> Method:
    """SR-UNIT for a configuration.

    Raises:
      UserError: the micro patches are too small for the discriminator.
    """
    nets, latent = config.networks, config.networks.unit_channels
    common: dict[str, Any] = {
        "blocks": nets.unit_blocks,
        "norm": nets.norm,
        "dtype": jnp.dtype(config.compute_dtype),
    }
    levels = int(math.log2(config.data.scale))
    down = [max(latent // 4, 1) * min(2**level, 4) for level in range(levels)] + [latent]
    up = [latent, *(max(latent >> level, 1) for level in range(1, levels + 1))]
    half = max(latent // 2, 1)
    generators = {
        "encoder_clinical": partial(Encoder, widths=(half, latent), strided=False, **common),
        "encoder_micro": partial(Encoder, widths=down, strided=True, **common),
        "decoder_clinical": partial(Decoder, widths=(latent, half), upsample=None, **common),
        "decoder_micro": partial(Decoder, widths=up, upsample=nets.unit_upsample, **common),
    }
    discriminators = {
        "clinical": _discriminator(config, layers=_CLINICAL_LAYERS, scales=1),
        "micro": _discriminator(config, layers=_LAYERS, scales=_SCALES),
    }
    return _unit(config, generators, discriminators, terms.own_grid(), nets.norm, latent)


def create_original(config: Config) -> Method:
    """UNIT with same-size networks on bicubically upsampled clinical images.

    Raises:
      UserError: the micro patches are too small for the discriminators.
    """
    nets = config.networks
    widths = [nets.original_channels * 2**level for level in range(3)]
    common: dict[str, Any] = {
        "blocks": nets.original_blocks,
        "norm": "instance",
        "dtype": jnp.dtype(config.compute_dtype),
    }
    encoder = partial(Encoder, widths=widths, strided=True, **common)
    decoder = partial(Decoder, widths=widths[::-1], upsample="nearest", **common)
    discriminator = _discriminator(config, layers=_LAYERS, scales=_SCALES)
    return _unit(
        config,
        {f"encoder_{domain}": encoder for domain in terms.DOMAINS}
        | {f"decoder_{domain}": decoder for domain in terms.DOMAINS},
        {"clinical": discriminator, "micro": discriminator},
        terms.micro_grid(config.data.scale),
        "instance",
        widths[-1],
    )


def _discriminator(config: Config, *, layers: int, scales: int) -> partial[MultiScaleDiscriminator]:
    micro_px = config.data.clinical_patch_px * config.data.scale
    least = 2 ** (_LAYERS + _SCALES - 1)
    if micro_px < least:
        raise UserError(
            f"config.data.clinical_patch_px={config.data.clinical_patch_px}: UNIT's discriminator "
            f"needs micro patches of at least {least} pixels, not {micro_px}"
        )
    return partial(
        MultiScaleDiscriminator,
        channels=config.networks.discriminator_channels,
        max_channels=config.networks.discriminator_max_channels,
        layers=layers,
        scales=scales,
        dtype=jnp.dtype(config.compute_dtype),
    )


def _unit(
    config: Config,
    generators: dict[str, Any],
    discriminators: dict[str, Any],
    grid: terms.ClinicalGrid,
    norm: Norm,
    latent: int,
) -> Method:
    shared = partial(ResidualBlock, latent, norm=norm, dtype=jnp.dtype(config.compute_dtype))
    shared_blocks = {"shared_encoder": shared, "shared_decoder": shared}
    constructors: Constructors = {
        "generators": {**generators, **shared_blocks},
        "discriminators": discriminators,
    }
    init, apply, modules = networks(constructors, config.remat)

    def encode(params: Params, domain: str, images: Array) -> Array:
        features = apply(params, "generators", f"encoder_{domain}", images)
        return apply(params, "generators", "shared_encoder", features)

    def decode(params: Params, domain: str, code: Array) -> Array:
        features = apply(params, "generators", "shared_decoder", code)
        return apply(params, "generators", f"decoder_{domain}", features)

    def translate(params: Params, batch: Images) -> Images:
        images, _ = everything(params, grid.enter(batch["clinical"]), batch["micro"], None)
        return {
            "sr": images["sr"],
            "fake_clinical": grid.leave(images["fake_clinical"]),
            "cycle_clinical": grid.leave(images["cycle_clinical"]),
            "cycle_micro": images["cycle_micro"],
        }

    def everything(
        params: Params, clinical: Array, micro: Array, key: Array | None
    ) -> tuple[Images, Images]:
        """All images, on the networks' grids, and the means of all codes; noise with a key."""
        means = {
            "clinical": encode(params, "clinical", clinical),
            "micro": encode(params, "micro", micro),
        }
        codes = _with_noise(means, key, 0)
        images = {}
        images["reconstructed_clinical"], images["fake_clinical"] = terms.in_one_batch(
            partial(decode, params, "clinical"), codes["clinical"], codes["micro"]
        )
        images["sr"], images["reconstructed_micro"] = terms.in_one_batch(
            partial(decode, params, "micro"), codes["clinical"], codes["micro"]
        )
        again = {
            "clinical": encode(params, "micro", images["sr"]),
            "micro": encode(params, "clinical", images["fake_clinical"]),
        }
        codes = _with_noise(again, key, 1)
        images["cycle_clinical"] = decode(params, "clinical", codes["clinical"])
        images["cycle_micro"] = decode(params, "micro", codes["micro"])
        return images, means | {f"cycle_{domain}": mean for domain, mean in again.items()}

    def generator_loss(
        params: Params, batch: Images, key: Array
    ) -> tuple[Array, tuple[Images, Terms]]:
        reals = {"clinical": grid.enter(batch["clinical"]), "micro": batch["micro"]}
        images, means = everything(params, reals["clinical"], reals["micro"], key)
        fakes = {"clinical": images["fake_clinical"], "micro": images["sr"]}
        adversarial = terms.adversarial(partial(apply, params, "discriminators"), fakes)
        autoencoding = {
            f"reconstruction_{domain}": reconstruction_loss(
                reals[domain], images[f"reconstructed_{domain}"]
            )
            for domain in terms.DOMAINS
        }
        cycle = {
            f"cycle_{domain}": reconstruction_loss(reals[domain], images[f"cycle_{domain}"])
            for domain in terms.DOMAINS
        }
        kl = {f"kl_{name}": kl_loss(mean) for name, mean in means.items()}
        mmsr, mmsr_terms = terms.mmsr(
            config.loss, batch, images["sr"], grid.leave(fakes["clinical"])
        )
        loss = (
            sum(adversarial.values())
            + config.loss.reconstruction * sum(autoencoding.values())
            + config.loss.cycle * sum(cycle.values())
            + config.loss.kl * sum(kl.values())
            + mmsr
        )
        named = {**adversarial, **autoencoding, **cycle, **kl, **mmsr_terms, "generator_loss": loss}
        return loss, (fakes, {**named, **terms.watch(batch["clinical"], images["sr"])})

    def super_resolve(params: Params, clinical: Array) -> Array:
        return decode(params, "micro", encode(params, "clinical", grid.enter(clinical)))

    discriminator_loss = terms.discriminator_loss(apply, grid)
    super_resolution = (
        unsplit(super_resolve)
        if modules["generators"]["encoder_clinical"].strided
        else _split(apply, modules["generators"], norm)
    )
    return Method(init, generator_loss, discriminator_loss, super_resolution, translate)


def _split(apply: Callable[..., Any], generators: dict[str, Any], norm: Norm) -> SuperResolution:
    """The way from clinical to micro, split in the micro decoder."""
    before = ("encoder_clinical", "shared_encoder", "shared_decoder")

    def trunk(params: Params, features: Array) -> Array:
        for name in before:
            features = apply(params, "generators", name, features)
        return apply(params, "generators", "decoder_micro", features, "trunk")

    def tail(params: Params, features: Array) -> Array:
        return apply(params, "generators", "decoder_micro", features, "tail")

    decoder = generators["decoder_micro"]
    reach_px = sum(generators[name].reach_px for name in before) + decoder.trunk_reach_px
    local = norm != "instance"
    return SuperResolution(trunk, tail, reach_px if local else None, decoder.tail_reach_px)


def _with_noise(means: Images, key: Array | None, pass_number: int) -> Images:
    """Codes drawn from N(mean, 1) in float32, one independent noise a pass and domain."""
    if key is None:
        return means
    keys = jax.random.split(jax.random.fold_in(key, pass_number), len(means))
    return {
        name: mean + jax.random.normal(noise_key, mean.shape, jnp.float32).astype(mean.dtype)
        for (name, mean), noise_key in zip(sorted(means.items()), keys, strict=True)
    }
