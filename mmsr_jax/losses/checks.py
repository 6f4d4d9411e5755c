"""What every loss asks of its images: NHWC, in [-1, 1]; and the precision it computes in."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_RANGE_TOLERANCE = 1e-3


def checked_images(**images: Float[Array, "..."]) -> list[Float[Array, "n h w c"]]:
    """The named images in float32.

    Raises:
      ValueError: naming an image that is not NHWC or has values outside [-1, 1] (values are
        checked where they are concrete; under jit, grad and vmap the caller answers for them).
    """
    for name, image in images.items():
        if np.ndim(image) != 4:
            raise ValueError(
                f"{name} has shape {np.shape(image)}: must be NHWC, "
                "which image[None, :, :, None] makes of rows and columns"
            )
        if not isinstance(image, jax.core.Tracer):
            largest = float(np.max(np.abs(np.asarray(image, np.float32))))
            if not largest <= 1.0 + _RANGE_TOLERANCE:
                raise ValueError(
                    f"{name} has a value of magnitude {largest:g}: must lie in [-1, 1]"
                )
    return [jnp.asarray(image, jnp.float32) for image in images.values()]


def checked_pair(
    a: Float[Array, "..."], b: Float[Array, "..."]
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
    """Two images of one shape in float32.

    Raises:
      ValueError: as `checked_images`, or if the shapes differ.
    """
    a, b = checked_images(a=a, b=b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: must be of one shape")
    return a, b
