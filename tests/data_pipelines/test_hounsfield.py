from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import UserError
from data_pipelines.hounsfield import check_hounsfield


def chest(dtype: Any = np.int16) -> np.ndarray:
    array = np.full((4, 20, 20), 40, dtype)
    array[:, 5:15, 5:15] = -850
    return array


def test_hounsfield_units_pass() -> None:
    array = chest()
    check_hounsfield(array, "scan")
    array[:, 0] = -3024  # padding of the scanner
    check_hounsfield((plane for plane in array), "scan")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (chest() + 1024, "values 174 to 1064, 0.0% of them air; subtract the offset, often 1024"),
        ((chest() + 1024).astype(np.uint16), "subtract the offset"),
        (np.clip((chest() + 1000) / 5, 0, 255).astype(np.uint8), "apply the DICOM rescale"),
        (((chest() + 1000) / 2000).astype(np.float32), "values 0.075 to 0.52"),
        (chest() - 2048, "values -2898 to -2008"),
        (np.where(chest() < 0, -850, 1e6).astype(np.float32), "to 1e+06"),
    ],
)
def test_other_units_are_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_hounsfield((plane for plane in array), "scan 7")
    assert said in str(caught.value)
    assert str(caught.value).startswith("scan 7 is not in Hounsfield units")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("slices_of_air", "passes"), [(0, False), (1, True)])
def test_air_counts_over_all_slices(slices_of_air: int, passes: bool) -> None:
    array = np.full((100, 8, 8), 40, np.int16)
    array[60 : 60 + slices_of_air] = -800
    if passes:
        check_hounsfield(array, "scan")
    else:
        with pytest.raises(UserError, match=r"values 40 to 40, 0\.0% of them air"):
            check_hounsfield(array, "scan")
