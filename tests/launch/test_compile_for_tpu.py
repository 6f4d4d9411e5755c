import importlib.util

import jax
import jax.numpy as jnp
import pytest
from commands import error_line, run

from launch.compile_for_tpu import CHIPS, collectives, figures, largest_arrays

COMMAND = ["launch.compile_for_tpu", "--config=configs/cyclegan.py", "--config.batch_size=4"]


def test_figures_of_a_compiled_function() -> None:
    matrix = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile()
    found = figures(compiled, CHIPS["v5e"], 2)
    assert found["floating-point operations"].startswith("0 GFLOP")  # 0.27
    assert found["memory"] == "0.00 of 16 GiB"
    assert found["collectives"] == "none"
    assert found["efficiency if they wait"] == "100.0%"


def test_collectives_are_counted_with_their_bytes() -> None:
    program = """
      %sum.1 = (f32[8,16]{1,0:T(8,128)}, /*index=1*/bf16[4]{0:S(1)}) all-reduce(%a, %b), x={}
      %sum.2 = f32[]{:T(128)} all-reduce-start(%c), channel_id=3
      %done = f32[] all-reduce-done(%sum.2)
      %all = u8[3,3]{1,0} all-gather(%d), dimensions={0}
      %plain = f32[1024]{0} add(%e, %f), metadata={op_name="after all-reduce(x)"}
    """
    counts, exchanged = collectives(program)
    assert counts == {"all-reduce": 2, "all-gather": 1}
    assert exchanged == 8 * 16 * 4 + 4 * 2 + 4 + 9


def test_the_largest_arrays_are_named_also_those_in_loops() -> None:
    def program(x: jax.Array) -> jax.Array:
        def body(total: jax.Array, _: None) -> tuple[jax.Array, None]:
            return total + jnp.outer(x, x).sum(), None

        return jax.lax.scan(body, jnp.float32(0), None, length=3)[0] + jnp.sin(x).sum()

    shape = jax.ShapeDtypeStruct((1024,), jnp.float32)
    first, *rest = largest_arrays(jax.jit(program).trace(shape).jaxpr)
    assert "float32[1024,1024]" in first
    assert "4 MiB each" in first
    assert any("float32[1024] by sin" in line for line in rest)


def test_figures_are_those_of_a_chip() -> None:
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.float32)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    found = figures(compiled, CHIPS["v5e"], 4)
    assert found["floating-point operations"] == "1100 GFLOP, 275 an image"  # 2 · 8192³
    assert found["time of the operations"] == "5.58 ms"  # at 197 TFLOP/s
    assert found["memory"].startswith("0.75 of")  # three matrices of 256 MiB
    assert found["bytes accessed"] == "0.81 GB, 0.20 an image"


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
