import math

import numpy as np
import pytest

from mmsr_jax.evaluation.sections import Section
from mmsr_jax.report.tables import cell, columns, mean_and_deviation, rows, text_table

SECTION = Section(
    "Phantoms",
    "Two phantoms.",
    {
        "bicubic": [{"ssim": 0.25, "psnr": 20.0}, {"ssim": 0.75, "psnr": 22.0}],
        "truth": [{"psnr": math.inf, "ssim": 1.0}, {"psnr": math.nan, "ssim": 1.0}],
        "SR": [{"psnr": 19.0, "ssim": 0.5, "shift_psnr": 17.0}],
    },
)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0], "2.000 ± 1.414"),
        ([0.5], "0.500"),
        ([1.0, math.nan, 3.0], "2.000 ± 1.414"),
        ([0.2, math.nan], "0.200"),
        ([math.nan], "–"),
        ([math.inf, math.inf], "–"),
        ([], "–"),
    ],
)
def test_cells(values: list[float], text: str) -> None:
    assert cell(values) == text


def test_the_deviation_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=7)
    assert mean_and_deviation(values) == pytest.approx((values.mean(), values.std(ddof=1)))


def test_columns_are_what_any_method_has_in_a_fixed_order() -> None:
    assert columns(SECTION) == ["psnr", "ssim", "shift_psnr"]
    assert rows(SECTION) == {
        "bicubic": ["21.000 ± 1.414", "0.500 ± 0.354", "–"],
        "truth": ["–", "1.000 ± 0.000", "–"],
        "SR": ["19.000", "0.500", "17.000"],
    }


def test_the_text_is_aligned() -> None:
    title, note, *lines = text_table(SECTION).splitlines()
    assert (title, note.strip()) == ("Phantoms", "Two phantoms.")
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["PSNR", "dB", "SSIM", "shift", "dB"]
    assert [line.split()[0] for line in lines[1:]] == ["bicubic", "truth", "SR"]
