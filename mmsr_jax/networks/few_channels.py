"""Convolutions from or to a few channels as one matrix product with the patches of that side.

The patches are (taps · few channels, pixels): a row is a shifted image, copied line by line. A
CPU's convolution from or to a few channels, and its gradients, leave its units idle.
"""

import functools
import operator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def from_few_gradients(
    images: Float[Array, "n h w few"],
    kernel: Float[Array, "r r few o"],
    cotangent: Float[Array, "n h2 w2 o"],
    stride: int,
) -> tuple[Float[Array, "n h w few"], Float[Array, "r r few o"]]:
    """Gradients of a VALID convolution from a few channels, by images and by kernel."""
    size, _, _, channels_out = kernel.shape
    patches_of = partial(_patches, size=size, stride=stride)
    pixels = cotangent.reshape(-1, channels_out)
    by_patches = jnp.einsum("to,mo->tm", kernel.reshape(-1, channels_out), pixels)
    (by_images,) = jax.linear_transpose(patches_of, images)(by_patches)
    return by_images, (patches_of(images) @ pixels).reshape(kernel.shape)


def to_few(
    images: Float[Array, "n h w i"], kernel: Float[Array, "r r i few"]
) -> Float[Array, "n h2 w2 few"]:
    """VALID convolution of stride 1 to a few channels."""
    size, _, channels_in, few = kernel.shape
    height, width = (side - size + 1 for side in images.shape[1:3])
    taps = kernel.transpose(0, 1, 3, 2).reshape(-1, channels_in)
    products = jnp.einsum("ti,mi->tm", taps, images.reshape(-1, channels_in))
    products = products.reshape(size, size, few, *images.shape[:3])
    shifted = [
        products[y, x, :, :, y : y + height, x : x + width]
        for y in range(size)
        for x in range(size)
    ]
    return functools.reduce(operator.add, shifted).transpose(1, 2, 3, 0)


def to_few_gradients(
    images: Float[Array, "n h w i"],
    kernel: Float[Array, "r r i few"],
    cotangent: Float[Array, "n h2 w2 few"],
) -> tuple[Float[Array, "n h w i"], Float[Array, "r r i few"]]:
    """Gradients of `to_few`: products with the patches of the cotangent, and the turned kernel."""
    size, _, channels_in, _ = kernel.shape
    sides = (size - 1, size - 1)
    patches = _patches(jnp.pad(cotangent, ((0, 0), sides, sides, (0, 0))), size, 1)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    by_images = jnp.einsum("tm,ti->mi", patches, turned.reshape(-1, channels_in))
    by_turned = patches @ images.reshape(-1, channels_in)
    by_kernel = by_turned.reshape(turned.shape)[::-1, ::-1].transpose(0, 1, 3, 2)
    return by_images.reshape(images.shape), by_kernel


def _patches(images: Array, size: int, stride: int) -> Array:
    """(size · size · channels, n · h2 · w2): what each tap sees."""
    planes = images.transpose(3, 0, 1, 2)
    ends = [stride * ((side - size) // stride) + 1 for side in images.shape[1:3]]
    shifted = [
        planes[:, :, y : y + ends[0] : stride, x : x + ends[1] : stride]
        for y in range(size)
        for x in range(size)
    ]
    return jnp.stack(shifted).reshape(size * size * len(planes), -1)
