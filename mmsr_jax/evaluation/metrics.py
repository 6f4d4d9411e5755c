"""Metrics of single images: NumPy, (rows, columns), values in [-1, 1].

PSNR and SSIM are scikit-image's for a data range of 2; SSIM has Wang et al.'s Gaussian window.
"""

import numpy as np
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.morphology import disk

DATA_RANGE = 2.0


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(truth, image, data_range=DATA_RANGE))


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean structural similarity, at most 1 (11 × 11 window, σ 1.5)."""
    return float(
        structural_similarity(
            truth, image, data_range=DATA_RANGE, gaussian_weights=True, use_sample_covariance=False
        )
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; −1 tells of an inverted image.

    0 if one of the images is blank.
    """
    a, b = (image.astype(np.float64).ravel() for image in (a, b))
    deviations = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / deviations) if deviations else 0.0


def edge_strength(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean gradient magnitude at the truth's structure edges, over the truth's own there.

    Structures are what stays of the truth's dense tissue (above 0, −300 HU in the clinical window)
    after an opening by a disc of 3 pixels: vessels, airway walls, nodules, no septa. Their edges
    are a band of 2 pixels on both sides. Gradients are Gaussian, σ 1 pixel. Texture that crosses
    the band counts too: read it beside `edge_alignment`.

    Returns:
      1 for the truth, 0 for a blank image; NaN without structures.
    """
    of_truth, of_image = _edge_gradients(truth, image)
    if not of_truth.size:
        return float("nan")
    return float(np.linalg.norm(of_image, axis=0).mean() / np.linalg.norm(of_truth, axis=0).mean())


def edge_alignment(truth: np.ndarray, image: np.ndarray) -> float:
    """`edge_strength` of the gradient's component along the truth's own gradient.

    An edge that is missing, blurred or elsewhere does not count, nor does texture.

    Returns:
      1 for the truth, 0 for a blank or an unrelated image, negative for an inverted one; NaN
      without structures.
    """
    of_truth, of_image = _edge_gradients(truth, image)
    if not of_truth.size:
        return float("nan")
    length = np.linalg.norm(of_truth, axis=0)
    along = (of_image * of_truth).sum(axis=0) / np.maximum(length, 1e-12)
    return float(along.mean() / length.mean())


def _edge_gradients(truth: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (2, n) of both images at the n pixels of the truth's structure edges."""
    structures = ndimage.binary_opening(truth > 0, disk(3))
    band = ndimage.binary_dilation(structures, disk(2)) & ~ndimage.binary_erosion(
        structures, disk(2)
    )
    return _gradient(truth)[:, band], _gradient(image)[:, band]


def _gradient(image: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            ndimage.gaussian_filter(image.astype(np.float64), 1.0, order=order)
            for order in ((1, 0), (0, 1))
        ]
    )


def grid_energy_db(image: np.ndarray, period_px: int) -> float:
    """How much fine detail depends on its place in the `period_px` grid; 0 dB if not at all.

    Power of the detail (what a Gaussian of σ 1 pixel removes), averaged for each position of a
    row, and of a column, within its grid cell: the ratio in dB of the strongest position to the
    weakest, for rows or columns, whichever is larger. Random detail shows a few tenths of a dB.
    """
    picture = image.astype(np.float64)
    power = (picture - ndimage.gaussian_filter(picture, 1.0)) ** 2
    ratios = []
    for axis in (0, 1):
        position = np.indices(image.shape)[axis] % period_px
        means = np.bincount(position.ravel(), power.ravel()) / np.bincount(position.ravel())
        strongest, weakest = np.maximum([means.max(), means.min()], 1e-12)
        ratios.append(10 * np.log10(strongest / weakest))
    return float(max(ratios))


def radial_spectrum(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power by radial frequency of the largest centred square, under a Hann window.

    Returns:
      Frequencies in cycles a pixel, up to 0.5, and log10 of the mean power of their rings.
    """
    size = min(image.shape)
    top, left = ((extent - size) // 2 for extent in image.shape)
    square = image[top : top + size, left : left + size].astype(np.float64)
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((square - square.mean()) * window)) ** 2 / (window**2).sum()
    frequency = np.fft.fftfreq(size)
    rings = size // 4
    ring = np.ceil(np.hypot(frequency[:, None], frequency[None, :]) / 0.5 * rings).astype(int)
    wanted = slice(1, rings + 1)
    counts = np.bincount(ring.ravel(), minlength=rings + 1)[wanted]
    sums = np.bincount(ring.ravel(), power.ravel(), minlength=rings + 1)[wanted]
    return (np.arange(rings) + 0.5) * 0.5 / rings, np.log10(sums / counts + 1e-12)


def spectrum_distance(images: np.ndarray, references: np.ndarray, scale: int) -> float:
    """Mean difference of two sets' radial spectra, in decades, beyond the scan's resolution.

    Args:
      images: (n, rows, columns).
      references: (m, rows, columns), of the same size.
      scale: only frequencies above 0.5 / `scale` cycles a pixel count: what the scan cannot hold.
    """
    frequencies = radial_spectrum(images[0])[0]
    of_images, of_references = (
        np.mean([radial_spectrum(image)[1] for image in group], axis=0)
        for group in (images, references)
    )
    return float(np.abs(of_images - of_references)[frequencies > 0.5 / scale].mean())
