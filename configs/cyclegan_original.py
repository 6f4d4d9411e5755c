"""CycleGAN as published (Zhu et al. 2017), on clinical patches upsampled bicubically.

    python -m mmsr_jax.main --config=configs/cyclegan_original.py         # or …py:demo

What Zheng et al. compare with in Fig. 2. Generators of 11.4 M parameters, both discriminators
70 × 70 PatchGANs, identity loss 5, no MMSR loss; data and schedule of `configs/cyclegan.py`.
Preset `demo`: small networks, the optimiser and the cycle weight of that file's `demo`.
"""

from configs import cyclegan
from mmsr_jax.config import Config


def get_config(preset: str = "paper") -> Config:
    """The configuration of a preset: "paper" or "demo"."""
    config = cyclegan.get_config(preset)
    config.name = config.name.replace("cyclegan", "cyclegan_original")
    config.method = "cyclegan_original"
    config.loss.without_mmsr()
    config.loss.identity = config.loss.cycle / 2
    if preset == "demo":
        config.networks.original_channels = 8
        config.networks.original_blocks = 6
    return config
