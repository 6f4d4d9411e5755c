"""How fast training runs: patch pairs a second, and the share of what the device can do."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

_MATRIX_SIDE = {"cpu": 1024}
_ACCELERATOR_MATRIX_SIDE = 8192
_TRIALS = 3


class Speed:
    """Measures an interval of steps; what is between intervals, as a validation, does not count.

    Attributes:
      flops_a_step: of the convolutions and matrix products of the whole batch.
      peak_flops: a second, of all devices together.
    """

    def __init__(self, batch_size: int, flops_a_step: float, peak_flops: float):
        self.flops_a_step = flops_a_step
        self.peak_flops = peak_flops
        self._batch_size = batch_size
        self._steps, self._seconds = 0, 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Begin to count, unless it has begun."""
        if self._started is None:
            self._started = time.perf_counter()

    def advance(self, steps: int) -> None:
        """Some more steps were handed to the device."""
        self._steps += steps

    def pause(self, done: jax.Array) -> None:
        """Stop counting when the device has reached `done`."""
        if self._started is not None:
            done.block_until_ready()
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def scalars(self) -> dict[str, float]:
        """Since the last call; pause before."""
        if not self._steps or not self._seconds:
            return {}
        steps_a_second = self._steps / self._seconds
        self._steps, self._seconds = 0, 0.0
        return {
            "patch_pairs_per_second": steps_a_second * self._batch_size,
            "model_flops_utilization": steps_a_second * self.flops_a_step / self.peak_flops,
        }


def model_flops(program: ClosedJaxpr) -> float:
    """Floating-point operations of the convolutions and matrix products of a traced function.

    As an accelerator gets them: what a CPU saves by minimal filtering counts in full, so that the
    figure belongs to the model and not to the machine. A product and its addition are two.
    """
    used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))
    return _flops(used)


def measured_peak_flops(dtype: str, devices: int) -> float:
    """Floating-point operations a second of one large matrix product, times the devices."""
    platform = jax.default_backend()
    side = _MATRIX_SIDE.get(platform, _ACCELERATOR_MATRIX_SIDE)
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()

    def seconds() -> float:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        return time.perf_counter() - start

    return devices * 2 * side**3 / min(seconds() for _ in range(_TRIALS))


def _flops(program: ClosedJaxpr | Jaxpr) -> float:
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(map(_flops_of_equation, jaxpr.eqns))


def _flops_of_equation(equation: JaxprEqn) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs_axis = parameters["dimension_numbers"].rhs_spec[0]
        # Of a dilated image, as in the gradient of a strided convolution, most pixels are zeros.
        taps = math.prod(kernel) / kernel[outputs_axis] / math.prod(parameters["lhs_dilation"])
        return 2.0 * math.prod(_shape(equation.outvars[0])) * taps
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        terms = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
        return 2.0 * math.prod(_shape(equation.outvars[0])) * terms
    if name == "cond":  # the last branch of `lax.platform_dependent` is that of accelerators
        return _flops(parameters["branches"][-1])
    times = parameters.get("length", 1) if name == "scan" else 1
    inner = [value for value in parameters.values() if isinstance(value, (ClosedJaxpr, Jaxpr))]
    return times * sum(map(_flops, inner))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
