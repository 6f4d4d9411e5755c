import platform
import subprocess
import sys

import pytest
from commands import REPOSITORY

FAULTS = """
import resource
{first}
import numpy as np

for count in range(25):
    np.ones(8_000_000)
    if count == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    code = FAULTS.format(first=first)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_large_arrays_take_no_fresh_pages_each_time() -> None:
    kept = page_faults("from mmsr_jax.host_memory import keep_host_memory; keep_host_memory()")
    assert kept < 0.1 * page_faults("")
