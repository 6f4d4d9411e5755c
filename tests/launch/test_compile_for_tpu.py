import importlib.util

import jax
import jax.numpy as jnp
import pytest
from commands import error_line, run

from launch.compile_for_tpu import CHIPS, figures

COMMAND = ["launch.compile_for_tpu", "--config=configs/cyclegan.py", "--config.batch_size=4"]


def test_figures_of_a_compiled_function() -> None:
    matrix = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile()
    found = figures(compiled, CHIPS["v5e"], 2)
    assert found["floating-point operations"].startswith("0 GFLOP")  # 0.27
    assert found["memory"] == "0.00 of 16 GiB"
    assert found["collectives"] == "none"


def test_figures_are_those_of_a_chip() -> None:
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.float32)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    found = figures(compiled, CHIPS["v5e"], 4)
    assert found["floating-point operations"] == "1100 GFLOP, 275 a pair"  # 2 · 8192³
    assert found["time of the operations"] == "5.58 ms"  # at 197 TFLOP/s
    assert found["memory"].startswith("0.75 of")  # three matrices of 256 MiB
    assert found["bytes accessed"] == "0.81 GB, 0.20 a pair"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--topology=v9:2x2", "--topology=v9:2x2: 'v9' is none of v4, v5e, v5p, v6e"),
        ("--config.batch_size=0", "config.batch_size"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(argument: str, expected: str) -> None:
    assert expected in error_line(run(*COMMAND, argument))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named() -> None:
    assert "pip install -e .[tpu]" in error_line(run(*COMMAND))
