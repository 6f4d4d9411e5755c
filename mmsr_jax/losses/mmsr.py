"""The multi-modality super-resolution (MMSR) loss: structure and intensity across the scale gap.

Zheng et al., "Multi-modality super-resolution loss for GAN-based super-resolution of clinical CT
images using micro CT image database", equations 1 to 4. Images are NHWC, float, in [-1, 1];
*clinical* images are `scale` times smaller than *micro* images on each side. Every term is a pure
function of arrays, computed in float32 and without its weight.
"""

from collections.abc import Callable
from typing import Literal

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmsr_jax.losses.checks import checked_images, checked_pair
from mmsr_jax.resampling import average_pool, nearest_upsample

SsimConstants = Literal["printed", "squared"]
SsimWindow = Literal["gaussian", "global"]
PixelLoss = Literal["mse", "l1"]

# C1 and C2 as the paper prints them (K·L for L = 2), and as Wang et al. 2004 define them ((K·L)²).
SSIM_CONSTANTS: dict[str, tuple[float, float]] = {"printed": (0.02, 0.06), "squared": (4e-4, 36e-4)}
_WINDOW_PX, _WINDOW_SIGMA_PX = 11, 1.5  # Wang et al. 2004, section III.C


def structure_loss(
    a: Float[Array, "n h w c"],
    b: Float[Array, "n h w c"],
    *,
    constants: SsimConstants = "printed",
    window: SsimWindow = "gaussian",
    luminance_factor: float = 2.0,
) -> Float[Array, ""]:
    """L_S of equation 1: one minus the mean structural similarity, in [0, 2], 0 for equal images.

    SSIM is not invariant to shifts: means of opposite signs turn its luminance factor negative and
    invert the gradient of the structure. The images are therefore moved to [0, 2] first.
    dm_pix limits the covariance to what the variances allow, so an exactly blank image feels no
    structure; a standard deviation of 0.001 (Gaussian window) or 0.01 (global) is enough.

    Args:
      a: images in [-1, 1].
      b: images in [-1, 1] of the same shape.
      constants: "printed" are the paper's C1 = 0.02 and C2 = 0.06; "squared" are those of Wang et
        al. 2004 for a data range of 2, which weigh low contrasts more.
      window: "gaussian" is the 11 × 11 window of Wang et al. (the map loses 10 pixels a side);
        "global" takes the statistics of the whole image, as the paper's wording can be read.
      luminance_factor: the factor before μa·μb. The paper prints 1, a misprint of Wang's 2: the
        literal form is not 0 for equal images (0.48 at a mean of 0.5) and its minimum darkens (to
        0.48 from 0.5, to 0.065 from 0.1; means in [0, 2]), so nobody should train with it.

    Raises:
      ValueError: on images that are not NHWC of one shape, images smaller than the window, values
        outside [-1, 1] (checked where they are concrete; under jit, grad and vmap the caller
        answers for them), or an unknown option.
    """
    a, b = checked_pair(a, b)
    if window == "gaussian":
        if min(a.shape[1:3]) < _WINDOW_PX:
            raise ValueError(f"{a.shape[1]}x{a.shape[2]} pixels: smaller than the SSIM window (11)")
        window_mean = _gaussian_means(a.shape[1], a.shape[2])
    elif window == "global":
        window_mean = _global_mean
    else:
        raise ValueError(f"window={window!r}: must be 'gaussian' or 'global'")
    if constants not in SSIM_CONSTANTS:
        raise ValueError(f"constants={constants!r}: must be one of {sorted(SSIM_CONSTANTS)}")
    c1, c2 = SSIM_CONSTANTS[constants]
    a, b = a + 1.0, b + 1.0
    similarity = dm_pix.ssim(
        a,
        b,
        max_val=2.0,
        k1=c1**0.5 / 2.0,
        k2=c2**0.5 / 2.0,
        return_map=True,
        filter_fn=window_mean,
    )
    if luminance_factor != 2.0:
        product = window_mean(a) * window_mean(b)
        similarity = similarity * (luminance_factor * product + c1) / (2.0 * product + c1)
    return 1.0 - similarity.mean()


def pixel_loss(
    a: Float[Array, "n h w c"], b: Float[Array, "n h w c"], *, kind: PixelLoss = "mse"
) -> Float[Array, ""]:
    """Mean squared error ("mse", equations 3 and 4) or mean absolute error ("l1") of two images.

    Raises:
      ValueError: as `structure_loss`, or on an unknown kind.
    """
    a, b = checked_pair(a, b)
    if kind == "mse":
        return jnp.mean((a - b) ** 2)
    if kind == "l1":
        return jnp.mean(jnp.abs(a - b))
    raise ValueError(f"pixel_loss={kind!r}: must be 'mse' or 'l1'")


def mmsr_loss(
    clinical: Float[Array, "n h w c"],
    sr: Float[Array, "n H W c"],
    micro: Float[Array, "n H W c"],
    fake_clinical: Float[Array, "n h w c"],
    *,
    weights: tuple[float, float, float, float] = (2.0, 1.0, 1.0, 1.0),
    pixel: PixelLoss = "mse",
    constants: SsimConstants = "printed",
    window: SsimWindow = "gaussian",
    luminance_factor: float = 2.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The four MMSR terms of equation 2: λ1·L_S + λ2·L_S + λ3·MSE + λ4·MSE.

    Args:
      clinical: x, real clinical patches in [-1, 1].
      sr: G1(x), their super-resolution in [-1, 1], `scale` times larger.
      micro: y, real micro patches in [-1, 1].
      fake_clinical: G2(y), `scale` times smaller than `micro`.
      weights: (λ1, λ2, λ3, λ4) of structure in the clinical domain, structure in the micro domain,
        intensity in the clinical domain, intensity in the micro domain; (2, 1, 1, 1) in the paper.
      pixel: "mse" (paper) or "l1".
      constants: see `structure_loss`.
      window: see `structure_loss`.
      luminance_factor: see `structure_loss`.

    Returns:
      The weighted sum, and the four unweighted terms by name.

    Raises:
      ValueError: as `structure_loss`, when the shapes are not one common scale apart, or when
        there are not four weights.
    """
    clinical, sr, micro, fake_clinical = checked_images(
        clinical=clinical, sr=sr, micro=micro, fake_clinical=fake_clinical
    )
    if len(weights) != 4:
        raise ValueError(f"weights={weights}: must be the four of the MMSR terms")
    scale = sr.shape[1] // clinical.shape[1]
    if scale < 1 or sr.shape[2] != clinical.shape[2] * scale:
        raise ValueError(f"clinical {clinical.shape} and sr {sr.shape} are no whole scale apart")
    pooled_sr = average_pool(sr, scale)
    raised_fake = nearest_upsample(fake_clinical, scale)

    def structure(a: Array, b: Array) -> Array:
        return structure_loss(
            a, b, constants=constants, window=window, luminance_factor=luminance_factor
        )

    terms = {
        "structure_clinical": structure(clinical, pooled_sr),
        "structure_micro": structure(micro, raised_fake),
        "intensity_clinical": pixel_loss(clinical, pooled_sr, kind=pixel),
        "intensity_micro": pixel_loss(micro, raised_fake, kind=pixel),
    }
    total = sum(weight * term for weight, term in zip(weights, terms.values()))
    return jnp.asarray(total), terms


def _gaussian_means(height: int, width: int) -> Callable[[Array], Array]:
    """Means under the Gaussian window, as two products with band matrices (exact and fast)."""

    def band_matrix(size: int) -> np.ndarray:
        taps = np.exp(-0.5 * ((np.arange(_WINDOW_PX) - _WINDOW_PX // 2) / _WINDOW_SIGMA_PX) ** 2)
        rows = size - _WINDOW_PX + 1
        matrix = np.zeros((rows, size), np.float32)
        for row in range(rows):
            matrix[row, row : row + _WINDOW_PX] = taps / taps.sum()
        return matrix

    down, across = band_matrix(height), band_matrix(width)

    def window_mean(images: Array) -> Array:
        return jnp.einsum(
            "ih,nhwc,jw->nijc", down, images, across, precision=jax.lax.Precision.HIGHEST
        )

    return window_mean


def _global_mean(images: Array) -> Array:
    return images.mean(axis=(1, 2), keepdims=True)
