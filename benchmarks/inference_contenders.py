"""What is measured: our inference, and the same network in PyTorch, whole and with MONAI.

Each is made in a process of its own and imports only what it needs.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from benchmarks.device import Device, prepare_process, torch_device
from benchmarks.memory import jax_peak_mib, peak_mib, torch_peak_mib
from data_pipelines.intensity import CLINICAL_WINDOW_HU
from mmsr_jax.host_memory import keep_host_memory

_WINDOW_PX = 128  # of MONAI; as large as our tiles on a CPU
_WINDOWS_AT_ONCE = 4
_USUAL_OVERLAP = 0.25
_REACH_PX = 24  # of G1, in clinical pixels
_EXACT_OVERLAP = 2 * _REACH_PX / _WINDOW_PX
_SCALE = 8
_HU_PER_UNIT = (CLINICAL_WINDOW_HU[1] - CLINICAL_WINDOW_HU[0]) / 2


class Variant(NamedTuple):
    """Ways in which a contender may be faster.

    Attributes:
      compiled: by torch.compile.
      host_memory_kept: by mmsr_jax.host_memory.
    """

    compiled: bool
    host_memory_kept: bool


class Contender(NamedTuple):
    """Something that super-resolves slices.

    Attributes:
      run: the first slices, as many as it is told, into the main memory or a file.
      first: the first slice, (rows, columns) in [-1, 1].
      whole: likewise, without tiles; None where there are none.
      device_peak_mib: of an accelerator's memory until now; None on a CPU.
    """

    run: Callable[[int], object]
    first: Callable[[], np.ndarray]
    whole: Callable[[], np.ndarray] | None
    device_peak_mib: Callable[[], float | None]

    def figures(self) -> dict[str, Any]:
        """`peak_mib`, `device_peak_mib` until now, the `first` slice and `seam_hu`."""
        peaks = {"peak_mib": peak_mib(), "device_peak_mib": self.device_peak_mib()}
        first = self.first()
        seam_hu = None if self.whole is None else largest_hu(first, self.whole())
        return peaks | {"seam_hu": seam_hu, "first": first}


Maker = Callable[[Path, Device, Variant], Contender]


def _ours(folder: Path, device: Device, variant: Variant) -> Contender:
    """Slices in memory, through tiles."""
    del variant
    keep_host_memory()
    import dataclasses

    from benchmarks.inference_inputs import SLICES, WEIGHTS, jax_network
    from mmsr_jax.inference.memory import plan
    from mmsr_jax.inference.tiles import super_resolve_slices

    images = np.load(folder / SLICES)
    network = jax_network(np.load(folder / WEIGHTS))
    way = plan(network, images.shape[1:])
    unsplit = dataclasses.replace(network, trunk_reach_px=None, tail_reach_px=None)

    def run(slices: int) -> None:
        for start in range(0, slices, way.slices):
            batch = images[start : min(start + way.slices, slices)]
            super_resolve_slices(way.network, batch, tile_px=way.tile_px)

    def first() -> np.ndarray:
        return super_resolve_slices(way.network, images[:1], tile_px=way.tile_px)[0]

    def whole() -> np.ndarray:
        return super_resolve_slices(unsplit, images[:1], tile_px=way.tile_px)[0]

    return Contender(run, first, whole, lambda: jax_peak_mib(device))


def _ours_streamed(folder: Path, device: Device, variant: Variant) -> Contender:
    """From the scan's file to an OME-Zarr."""
    del variant
    keep_host_memory()
    import zarr

    from benchmarks.inference_inputs import SCAN, WEIGHTS, jax_network
    from data_pipelines.intensity import CLINICAL_WINDOW_HU, clinical_intensity
    from mmsr_jax.inference.model import SuperResolver
    from mmsr_jax.inference.options import Options
    from mmsr_jax.inference.scan import super_resolve_scan

    network = jax_network(np.load(folder / WEIGHTS))
    model = SuperResolver(network, CLINICAL_WINDOW_HU, {"parameters_sha256": "random"})
    output = folder / "fine.ome.zarr"

    def run(slices: int) -> None:
        options = Options(folder / SCAN, output, overwrite=True, slices=f"0:{slices}")
        super_resolve_scan([model], options)

    def first() -> np.ndarray:
        hu = zarr.open_array(output / "0", mode="r")[0]
        return clinical_intensity(CLINICAL_WINDOW_HU).normalise(np.asarray(hu))

    return Contender(run, first, None, lambda: jax_peak_mib(device))


def _torch_whole(folder: Path, device: Device, variant: Variant) -> Contender:
    """Every slice at once, without tiles."""
    network, images = _torch_network(folder, device, variant)
    return _torch_contender(network, None, images, device)


def _monai(overlap: float) -> Maker:
    """MONAI's sliding window, blended with its Gaussian."""

    def make(folder: Path, device: Device, variant: Variant) -> Contender:
        network, images = _torch_network(folder, device, variant)
        # MONAI would load both for nothing; its memory is to be its own.
        sys.modules.update(dict.fromkeys(("tensorflow", "jax"), cast("Any", None)))
        from monai.inferers import sliding_window_inference

        def tiled(image: Any) -> Any:
            return sliding_window_inference(
                image, _WINDOW_PX, _WINDOWS_AT_ONCE, network, overlap=overlap, mode="gaussian"
            )

        return _torch_contender(tiled, network, images, device)

    return make


OURS, _TORCH_WHOLE = "mmsr-jax", "PyTorch, whole slices"
_MONAI_USUAL, _MONAI_EXACT = (
    f"PyTorch + MONAI, overlap {overlap}" for overlap in (_USUAL_OVERLAP, _EXACT_OVERLAP)
)
CONTENDERS: dict[str, Maker] = {
    OURS: _ours,
    _TORCH_WHOLE: _torch_whole,
    "mmsr-jax, file to OME-Zarr": _ours_streamed,
    _MONAI_USUAL: _monai(_USUAL_OVERLAP),
    _MONAI_EXACT: _monai(_EXACT_OVERLAP),
}
OUR_VARIANT = Variant(compiled=True, host_memory_kept=True)
VARIANTS = [Variant(compiled, kept) for compiled in (False, True) for kept in (False, True)]
# Whose trials say which variant of PyTorch is the fastest.
TRIED_AS = {
    _TORCH_WHOLE: _TORCH_WHOLE,
    _MONAI_USUAL: _MONAI_USUAL,
    _MONAI_EXACT: _MONAI_USUAL,
}


def make_contender(name: str, folder: Path, device: Device, variant: Variant) -> Contender:
    """The contender of a name, in the process that is to be its own."""
    prepare_process(device, host_memory_kept=variant.host_memory_kept)
    return CONTENDERS[name](folder, device, variant)


def largest_hu(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two images in [-1, 1], in Hounsfield units."""
    return float(np.abs(a - b).max()) * _HU_PER_UNIT


def _torch_network(folder: Path, device: Device, variant: Variant) -> tuple[Any, Any]:
    """The network and (n, 1, rows, columns) slices in main memory."""
    import torch
    import torch._inductor.config

    from benchmarks.torch_peer.generators import SrResnet
    from benchmarks.torch_peer.weights import copy_weights

    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True
    torch._inductor.config.freezing = True  # weights are laid out for the convolutions once
    network = SrResnet(
        channels=64, blocks=9, tail_channels=32, scale=_SCALE, upsample="nearest"
    ).eval()
    copy_weights(np.load(folder / "weights.npz"), network)
    network = network.to(torch_device(device)).to(memory_format=torch.channels_last)
    images = torch.from_numpy(np.load(folder / "slices.npy")[:, None])
    return torch.compile(network, dynamic=False) if variant.compiled else network, images


def _torch_contender(tiled: Any, whole: Any, images: Any, device: Device) -> Contender:
    import torch

    def resolve(function: Any, image: Any) -> np.ndarray:
        with torch.inference_mode():
            return function(image[None].to(torch_device(device)))[0, 0].cpu().numpy()

    def run(slices: int) -> None:
        for image in images[:slices]:
            resolve(tiled, image)

    return Contender(
        run,
        lambda: resolve(tiled, images[0]),
        None if whole is None else lambda: resolve(whole, images[0]),
        lambda: torch_peak_mib(device),
    )
