"""A synthetic chest."""

import numpy as np


def body(
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 5.0), field_mm: float = 400.0
) -> tuple[np.ndarray, np.ndarray]:
    """A chest in air on a table, 150 mm long: HU and the lungs with vessels and tumour in them."""
    step_x, step_y, step_z = spacing_mm
    z, y, x = np.meshgrid(
        np.arange(0, 150, step_z) - 75,
        np.arange(0, field_mm, step_y) - field_mm / 2,
        np.arange(0, field_mm, step_x) - field_mm / 2,
        indexing="ij",
    )

    def ellipse(center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
        return ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1

    hu = np.full(x.shape, -1000.0)
    hu[ellipse((0, 0), (170, 115))] = 40
    lungs = ellipse((-80, 0), (60, 85)) | ellipse((80, 0), (60, 85))
    hu[lungs] = -850
    hu[np.hypot(x - 80, y - 20) < 4] = 60  # a vessel through all slices
    tumour = (np.hypot(x + 132, y) < 9) & (np.abs(z) < 20)  # on the lung's wall
    hu[tumour] = 30
    hu[np.hypot(x, y + 40) < 8] = -1000  # trachea
    hu[(np.abs(x) < 40) & (np.abs(y - 60) < 15) & (z < -40)] = -1000  # stomach
    foam = (np.abs(x) < 180) & (np.abs(y - 155) < 25)
    hu[foam] = 100
    hu[(np.abs(x) < 177) & (np.abs(y - 155) < 22)] = -900
    return hu + np.random.default_rng(0).normal(0, 30, hu.shape), lungs
