"""SR-UNIT with the MMSR loss: Zheng et al.'s second method.

    python -m mmsr_jax.main --config=configs/unit.py            # paper: the default
    python -m mmsr_jax.main --config=configs/unit.py:demo       # minutes on two CPU cores

Preset `paper`: the data, schedule and MMSR weights of `configs/cyclegan.py`; UNIT's own weights
(reconstruction and cycle 10, KL 0.01), Adam 1e-4 with an L2 of 1e-4, and no image pool.

Preset `demo`: the data, the weights and the optimiser of `configs/cyclegan.py:demo`, small
networks; nearest upsampling instead of pixel shuffle, whose 8-pixel grid shows in so few steps
(docs/results.md). Expect, on phantoms: edges 0.75 to 0.81, correlation with the scan 0.94 to 0.95.
"""

from configs import cyclegan
from mmsr_jax.config import Config


def get_config(preset: str = "paper") -> Config:
    """The configuration of a preset: "paper" or "demo"."""
    config = cyclegan.get_config(preset)
    config.name = config.name.replace("cyclegan", "unit")
    config.method = "unit"
    config.pool_size = 0
    config.optimizer.l2 = 1e-4
    if preset == "paper":
        config.optimizer.learning_rate = 1e-4
    else:
        config.networks.unit_channels = 32
        config.networks.unit_blocks = 2
        config.networks.unit_upsample = "nearest"
    return config
