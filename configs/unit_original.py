"""UNIT as published (Liu et al. 2017), on clinical patches upsampled bicubically.

    python -m mmsr_jax.main --config=configs/unit_original.py         # or …py:demo

What Zheng et al. compare with in Fig. 2. Encoders and decoders of one size for both domains,
18.6 M parameters together, both discriminators at three scales, no MMSR loss; data, schedule and
UNIT's weights of `configs/unit.py`. Preset `demo`: small networks, that file's `demo` else.
"""

from configs import unit
from mmsr_jax.config import Config


def get_config(preset: str = "paper") -> Config:
    """The configuration of a preset: "paper" or "demo"."""
    config = unit.get_config(preset)
    config.name = config.name.replace("unit", "unit_original")
    config.method = "unit_original"
    config.loss.without_mmsr()
    config.networks.original_blocks = 3
    if preset == "demo":
        config.networks.original_channels = 8
        config.networks.original_blocks = 2
    return config
