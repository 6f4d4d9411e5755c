"""Methods: which networks, wired by which losses."""

from data_pipelines.errors import UserError
from mmsr_jax.config import Config
from mmsr_jax.methods import cyclegan, unit
from mmsr_jax.methods.method import Images, Method, Params, SuperResolution, Terms

__all__ = ["Images", "Method", "Params", "SuperResolution", "Terms", "create"]

_METHODS = {
    "cyclegan": cyclegan.create,
    "unit": unit.create,
    "cyclegan_original": cyclegan.create_original,
    "unit_original": unit.create_original,
}


def create(config: Config) -> Method:
    """The method that `config.method` names.

    Raises:
      UserError: there is no such method.
    """
    if config.method not in _METHODS:
        raise UserError(f"config.method={config.method!r}: must be one of {', '.join(_METHODS)}")
    return _METHODS[config.method](config)
