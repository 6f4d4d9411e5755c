"""SR-UNIT without the MMSR loss: the networks of `configs/unit.py`, λ1 to λ4 = 0.

    python -m mmsr_jax.main --config=configs/unit_without_mmsr.py         # or …py:demo

What Zheng et al. compare with in Fig. 3. Everything else is as in `configs/unit.py`.
"""

from configs import unit
from mmsr_jax.config import Config


def get_config(preset: str = "paper") -> Config:
    """The configuration of a preset: "paper" or "demo"."""
    config = unit.get_config(preset)
    config.name = config.name.replace("unit", "unit_without_mmsr")
    config.loss.without_mmsr()
    return config
