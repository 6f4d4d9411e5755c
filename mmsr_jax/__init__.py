"""Unpaired super-resolution of clinical CT to micro-CT resolution, in JAX."""

__version__ = "0.1.0"
