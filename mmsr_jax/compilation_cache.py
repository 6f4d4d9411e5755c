"""JAX's persistent compilation cache: what was compiled once is read back by the next process."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Use `JAX_COMPILATION_CACHE_DIR`, or a folder of the user's cache directory."""
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        # The first process alone would find what it compiled before, and Gloo waits only 30 s for
        # the others to compile it again (jax 0.10.2).
        jax.config.update("jax_enable_compilation_cache", False)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(base / "mmsr_jax" / "xla"))
