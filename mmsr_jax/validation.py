"""Validation on fixed, unpaired patches: what can be said without any ground truth."""

from collections.abc import Callable

import numpy as np

from mmsr_jax.evaluation import metrics
from mmsr_jax.evaluation.interpolation import bicubic, nearest
from mmsr_jax.methods import Images

Arrays = dict[str, np.ndarray]


def validate(
    translate: Callable[[Arrays], Images], patches: Arrays, scale: int
) -> tuple[dict[str, float], Arrays]:
    """Metrics and translations of validation patches.

    Args:
      translate: batch of one pair → every translation by name (`Method.translate`, compiled).
      patches: {"clinical": (n, h, w, 1), "micro": (n, s·h, s·w, 1)} in [-1, 1].
      scale: s.

    Returns:
      Named metrics, and the translations stacked over the patches. `score` ranks checkpoints
      (lower is better): the distance of the spectra of SR and real micro patches beyond the scan's
      resolution, in decades, plus what the correlation of scan and pooled SR lacks to 1. The first
      alone would reward an inverted image, the second a blurred one.
    """
    count = len(patches["clinical"])
    pairs = [
        translate({name: patches[name][i : i + 1] for name in ("clinical", "micro")})
        for i in range(count)
    ]
    translated = {name: np.concatenate([pair[name] for pair in pairs]) for name in pairs[0]}
    clinical, sr = patches["clinical"][..., 0], translated["sr"][..., 0]
    pooled = sr.reshape(count, clinical.shape[1], scale, clinical.shape[2], scale).mean((2, 4))
    correlation = float(np.mean([metrics.correlation(*pair) for pair in zip(clinical, pooled)]))
    distance = metrics.spectrum_distance(sr, patches["micro"][..., 0], scale)
    values = {
        "correlation": correlation,
        "contrast": float(sr.std(axis=(1, 2)).mean() / clinical.std(axis=(1, 2)).mean()),
        "consistency_psnr": metrics.psnr(clinical, pooled),
        "spectrum_distance": distance,
        "score": distance + 1.0 - correlation,
    }
    return values, translated


def collapse(values: dict[str, float]) -> str | None:
    """What is wrong with the super-resolution, if it is blank or inverted."""
    if not values["contrast"] >= 0.3:  # also if it is NaN
        return f"blank: contrast {values['contrast']:.2f} of the scan's"
    if values["correlation"] < 0:
        return f"inverted: correlation {values['correlation']:.2f} with the scan"
    return None


def panel(patches: Arrays, translated: Arrays, scale: int, rows: int = 4) -> np.ndarray:
    """A picture of the first patches, uint8 (height, width).

    Columns: clinical (nearest), bicubic, SR, its way back; micro, fake clinical, its way back.
    """

    def row(index: int) -> np.ndarray:
        def micro_sized(image: np.ndarray) -> np.ndarray:
            return nearest(image[index, :, :, 0], scale)

        clinical = patches["clinical"][index, :, :, 0]
        pictures = [
            nearest(clinical, scale),
            bicubic(clinical, scale),
            translated["sr"][index, :, :, 0],
            micro_sized(translated["cycle_clinical"]),
            patches["micro"][index, :, :, 0],
            micro_sized(translated["fake_clinical"]),
            translated["cycle_micro"][index, :, :, 0],
        ]
        return np.hstack(pictures)

    picture = np.vstack([row(index) for index in range(min(rows, len(patches["clinical"])))])
    return np.rint((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8)
