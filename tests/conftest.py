import os
from pathlib import Path

# Most of the tests' time is compiling, which the next run of the tests, and the commands that they
# start, read back from here. JAX reads these variables once, when it is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
