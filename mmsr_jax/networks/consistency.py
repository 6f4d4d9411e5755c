"""Tying a super-resolved image to its scan."""

from jaxtyping import Array, Float

from mmsr_jax.resampling import BICUBIC_REACH_PX, average_pool, bicubic_upsample

_PASSES = 8  # each halves the disagreement of white noise, the worst case
CONSISTENT_REACH_PX = _PASSES * (BICUBIC_REACH_PX + 0.5)


def consistent(
    sr: Float[Array, "n H W c"], clinical: Float[Array, "n h w c"]
) -> Float[Array, "n H W c"]:
    """`sr` changed smoothly until its average pooling is nearly the scan.

    Repeats sr ← sr + bicubic(clinical − pool(sr)), a Neumann series of the near-identity
    pool ∘ bicubic; adding nearest-upsampled residuals instead would leave blocks. Values may leave
    [-1, 1] where the scan asks for it.
    """
    scale = sr.shape[1] // clinical.shape[1]
    for _ in range(_PASSES):
        sr = sr + bicubic_upsample(clinical - average_pool(sr, scale), scale)
    return sr
