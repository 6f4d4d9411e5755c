"""Metrics of single images: NumPy, float, (rows, columns), values in [-1, 1] unless stated.

PSNR and SSIM are scikit-image's with a data range of 2. SSIM uses Wang et al.'s Gaussian window.
"""

import numpy as np
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

DATA_RANGE = 2.0


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(peak_signal_noise_ratio(truth, image, data_range=DATA_RANGE))


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean structural similarity, at most 1 (11 × 11 Gaussian window, σ 1.5)."""
    return float(
        structural_similarity(
            truth, image, data_range=DATA_RANGE, gaussian_weights=True, use_sample_covariance=False
        )
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two images; −1 tells of an inverted one."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def edge_strength(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean gradient magnitude at the truth's structure edges, over the truth's own there.

    Structure edges are the tenth of the pixels with the steepest gradients of the truth (Gaussian
    derivatives, σ 1 pixel). 1 is as sharp as the truth; edges in wrong places do not count.
    """
    of_truth = ndimage.gaussian_gradient_magnitude(truth.astype(np.float64), 1.0)
    of_image = ndimage.gaussian_gradient_magnitude(image.astype(np.float64), 1.0)
    edges = of_truth >= np.quantile(of_truth, 0.9)
    return float(of_image[edges].mean() / of_truth[edges].mean())


def grid_energy_db(image: np.ndarray, period_px: int) -> float:
    """How far texture depends on its place in the `period_px` grid: 0 dB if not at all.

    The power of the image's fine detail (beyond a Gaussian of σ 1 pixel) is averaged for every
    position within the grid cell, along rows and along columns; the result is the larger ratio, in
    dB, of the strongest to the weakest of the `period_px` positions.
    """
    detail = image - ndimage.gaussian_filter(image.astype(np.float64), 1.0)
    rows, columns = (size - size % period_px for size in image.shape)
    cells = detail[:rows, :columns].reshape(
        rows // period_px, period_px, columns // period_px, period_px
    )
    ratios = []
    for axes in ((0, 2, 3), (0, 1, 2)):
        power = (cells**2).mean(axis=axes)
        ratios.append(10 * np.log10(power.max() / max(power.min(), 1e-12)))
    return float(max(ratios))


def radial_spectrum(image: np.ndarray, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mean power by radial frequency: (cycles per pixel in (0, 0.5], log10 power), Hann-windowed.

    Args:
      image: a square image.
      bins: the number of rings.
    """
    size = min(image.shape)
    square = image[:size, :size].astype(np.float64)
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((square - square.mean()) * window)) ** 2 / (window**2).sum()
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(*np.meshgrid(frequency, frequency, indexing="ij"))
    ring = np.ceil(radius / 0.5 * bins).astype(int)
    counts = np.bincount(ring.ravel(), minlength=bins + 1)[1 : bins + 1]
    sums = np.bincount(ring.ravel(), power.ravel(), minlength=bins + 1)[1 : bins + 1]
    centres = (np.arange(bins) + 0.5) * 0.5 / bins
    filled = counts > 0
    return centres[filled], np.log10(sums[filled] / counts[filled] + 1e-12)


def spectrum_distance(
    images: list[np.ndarray], references: list[np.ndarray], scale: int
) -> float:
    """Mean absolute difference of radial spectra, in decades, above the scan's Nyquist frequency.

    Only frequencies beyond 0.5 / `scale` cycles a micro pixel count: what super-resolution adds.
    """
    spectra = []
    for group in (images, references):
        frequencies, _ = radial_spectrum(group[0])
        spectra.append(np.mean([radial_spectrum(image)[1] for image in group], axis=0))
    beyond = frequencies > 0.5 / scale
    return float(np.abs(spectra[0] - spectra[1])[beyond].mean())
