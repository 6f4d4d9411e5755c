"""SR-CycleGAN without the MMSR loss: the networks of `configs/cyclegan.py`, λ1 to λ4 = 0.

    python -m mmsr_jax.main --config=configs/cyclegan_without_mmsr.py         # or …py:demo

What Zheng et al. compare with in Fig. 3. Everything else is as in `configs/cyclegan.py`.
"""

from configs import cyclegan
from mmsr_jax.config import Config


def get_config(preset: str = "paper") -> Config:
    """The configuration of a preset: "paper" or "demo"."""
    config = cyclegan.get_config(preset)
    config.name = config.name.replace("cyclegan", "cyclegan_without_mmsr")
    config.loss.without_mmsr()
    return config
