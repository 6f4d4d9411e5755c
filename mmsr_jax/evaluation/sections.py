"""The sections of an evaluation: every method on the same images, every value by case."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from data_pipelines.phantom import MICRO_SPACING_MM
from mmsr_jax.evaluation import anatomy, hallucination, metrics, realism
from mmsr_jax.evaluation.consistency import consistency
from mmsr_jax.evaluation.ground_truth import score
from mmsr_jax.evaluation.phantom_cases import PhantomCase

# A method: a scan (rows, columns) → its super-resolution (s·rows, s·columns), in [-1, 1].
SuperResolve = Callable[[np.ndarray], np.ndarray]
Cases = list[dict[str, float]]
WindowHu = tuple[float, float]

TRUTH = "truth"
UNRELATED = "another lung"  # what realism alone is worth
_BORDER_PX = 2  # clinical pixels that are not scored, as interpolation lacks neighbours there


@dataclasses.dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
      title: what was evaluated.
      note: what a reader must know to compare a number with another's.
      methods: method → the metrics of every case, by name.
    """

    title: str
    note: str
    methods: dict[str, Cases]


@dataclasses.dataclass(frozen=True)
class PhantomImages:
    """What a method makes of the four scans of a phantom; or the truth, of which there is one."""

    image: np.ndarray
    without_nodules: np.ndarray
    with_other_noise: np.ndarray | None = None
    shifted: np.ndarray | None = None


def super_resolve_phantom(method: SuperResolve, case: PhantomCase) -> PhantomImages:
    """All images of a phantom that its metrics compare."""
    return PhantomImages(
        method(case.scan),
        method(case.scan_without_nodules),
        method(case.scan_with_other_noise),
        method(case.scan_shifted),
    )


def phantom_sections(
    images: Mapping[str, Sequence[PhantomImages]], cases: Sequence[PhantomCase], window_hu: WindowHu
) -> list[Section]:
    """Ground truth and consistency, anatomy, and hallucination on phantoms.

    Args:
      images: method → what it made of each case. The truth joins them, and with several cases
        another lung's.
      cases: of `phantom_cases`.
      window_hu: of the values in [-1, 1].
    """
    truths = [PhantomImages(case.micro, case.micro_without_nodules) for case in cases]
    images = {**images, UNRELATED: truths[1:] + truths[:1], TRUTH: truths}
    if len(cases) == 1:
        del images[UNRELATED]
    pairs = {
        name: [
            paired_scores(case.scan, case.micro, one.image, window_hu)
            for case, one in zip(cases, ones, strict=True)
        ]
        for name, ones in images.items()
    }
    airways = [anatomy.airways(case.micro, case.lumens, case.walls) for case in cases]
    of_airways = {
        name: [
            dataclasses.asdict(anatomy.airway_errors(airway, case.micro, one.image))
            for case, one, of_case in zip(cases, ones, airways, strict=True)
            for airway in of_case
        ]
        for name, ones in images.items()
    }
    invented = {
        name: [_invented(case, one) for case, one in zip(cases, ones, strict=True)]
        for name, ones in images.items()
    }
    return [
        Section(
            "Phantoms against their truth",
            f"{len(cases)} phantoms that no training ever sees; {UNRELATED}: the truth of the "
            f"next one, realistic and wrong. {_data_range(window_hu)}",
            pairs,
        ),
        Section(
            "Airways of the phantoms",
            f"{sum(map(len, airways))} airways with lumens of at least 3 micro pixels radius; "
            "half-maximum method, errors relative to the same measurement of the truth.",
            of_airways,
        ),
        Section(
            "Hallucination on the phantoms",
            "Nodules in and out of the same lung; solid structures with no counterpart within half "
            "a clinical pixel; PSNR between super-resolutions of the same lung, moved by half a "
            f"clinical pixel or scanned with other noise, for a data range of 2: "
            f"{_window(window_hu)}.",
            invented,
        ),
    ]


def pairs_section(
    title: str,
    methods: Mapping[str, SuperResolve],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    window_hu: WindowHu,
    origin: str = "",
) -> Section:
    """Scans with their truth, (rows, columns) and (s·rows, s·columns) in [-1, 1].

    `origin` says how the scans came to be, in a sentence with a space at its end.
    """
    scores: dict[str, Cases] = {name: [] for name in (*methods, TRUTH)}
    for scan, truth in pairs:
        for name, method in methods.items():
            scores[name].append(paired_scores(scan, truth, method(scan), window_hu))
        scores[TRUTH].append(paired_scores(scan, truth, truth, window_hu))
    count = len(scores[TRUTH])
    return Section(title, f"{count} slices. {origin}{_data_range(window_hu)}", scores)


def scans_section(
    methods: Mapping[str, SuperResolve], scans: Sequence[np.ndarray], window_hu: WindowHu
) -> Section:
    """Consistency on scans without truth, (rows, columns) in [-1, 1]."""
    scores = {
        name: [consistency_scores(scan, method(scan), window_hu) for scan in scans]
        for name, method in methods.items()
    }
    return Section(
        "Consistency on clinical scans", f"{len(scans)} slices. {_data_range(window_hu)}", scores
    )


def realism_section(
    methods: Mapping[str, SuperResolve],
    scans: np.ndarray,
    micro: np.ndarray,
    window_hu: WindowHu,
) -> Section:
    """Images of the clinical validation patches against micro ones, unpaired.

    Args:
      methods: by name.
      scans: (n, rows, columns) in [-1, 1].
      micro: (m, s·rows, s·columns) in [-1, 1], m ≥ 2; half of them against the other half are the
        row of the truth, the floor of every distance.
      window_hu: of the values in [-1, 1].
    """
    scale = micro.shape[1] // scans.shape[1]
    half = len(micro) // 2
    rows = {}
    for name, method in methods.items():
        images = np.stack([method(scan) for scan in scans])
        agreement = [
            consistency_scores(scan, image, window_hu, border_px=0)
            for scan, image in zip(scans, images, strict=True)
        ]
        beside = {
            metric: float(np.mean([case[metric] for case in agreement]))
            for metric in ("correlation", "consistency_ssim", "contrast")
        }
        rows[name] = [_realism(images, micro, scale, window_hu) | beside]
    rows[TRUTH] = [_realism(micro[:half], micro[half:], scale, window_hu)]
    return Section(
        "Realism on validation patches",
        f"{len(scans)} clinical patches, super-resolved, against {len(micro)} real micro patches; "
        "truth: one half of these against the other. An inverted image can be perfectly "
        "realistic: read the first columns with the last. " + _data_range(window_hu),
        rows,
    )


def paired_scores(
    scan: np.ndarray, truth: np.ndarray, image: np.ndarray, window_hu: WindowHu
) -> dict[str, float]:
    """Ground truth and consistency of one slice, without two clinical pixels at its border."""
    scale = len(truth) // len(scan)
    inner_truth, inner_image = (_inner(one, _BORDER_PX * scale) for one in (truth, image))
    scores = dataclasses.asdict(score(inner_truth, inner_image, scale))
    return scores | consistency_scores(scan, image, window_hu)


def consistency_scores(
    scan: np.ndarray, image: np.ndarray, window_hu: WindowHu, border_px: int = _BORDER_PX
) -> dict[str, float]:
    """Consistency of one slice, without `border_px` clinical pixels at its border."""
    scale = len(image) // len(scan)
    inner = (_inner(scan, border_px), _inner(image, border_px * scale))
    return dataclasses.asdict(consistency(*inner, window_hu))


def _realism(
    images: np.ndarray, references: np.ndarray, scale: int, window_hu: WindowHu
) -> dict[str, float]:
    half_window = (window_hu[1] - window_hu[0]) / 2
    return {
        "sliced_wasserstein": realism.sliced_wasserstein(images, references),
        "spectrum_decades": metrics.spectrum_distance(images, references, scale),
        "grid_db": float(np.mean([metrics.grid_energy_db(image, scale) for image in images])),
        "histogram_hu": realism.histogram_distance(images, references) * half_window,
    }


def _invented(case: PhantomCase, images: PhantomImages) -> dict[str, float]:
    scale = len(case.micro) // len(case.scan)
    nodules = hallucination.nodule_scores(
        case.nodules,
        (case.micro, case.micro_without_nodules),
        (images.image, images.without_nodules),
    )
    values = {
        field.name: float(np.mean([getattr(nodule, field.name) for nodule in nodules]))
        for field in dataclasses.fields(hallucination.NoduleScore)
    }
    for name, one, other in (
        ("false_per_mm2", images.image, case.micro),
        ("missing_per_mm2", case.micro, images.image),
    ):
        values[name] = hallucination.structures_without_counterpart(
            one, other, tolerance_px=scale // 2, pixel_mm=MICRO_SPACING_MM
        )
    if images.shifted is not None and images.with_other_noise is not None:
        for name, again, shift_px in (
            ("shift_psnr", images.shifted, scale // 2),
            ("noise_psnr", images.with_other_noise, 0),
        ):
            values[name] = hallucination.stability(
                images.image, again, shift_px=shift_px, scale=scale
            )
    return values


def _inner(picture: np.ndarray, border_px: int) -> np.ndarray:
    return picture[border_px : len(picture) - border_px, border_px : picture.shape[1] - border_px]


def _data_range(window_hu: WindowHu) -> str:
    return (
        f"PSNR and SSIM for a data range of 2: {_window(window_hu)}. "
        "Edges: gradient at the truth's structures, 1 is the truth's; grid: 0 dB is none; "
        "consistency, MAE, correlation: of pooled image and scan; contrast: over the scan's; "
        "drift: from the scan, in micro pixels."
    )


def _window(window_hu: WindowHu) -> str:
    return f"the window of {window_hu[0]:g} to {window_hu[1]:g} HU as [-1, 1]"
