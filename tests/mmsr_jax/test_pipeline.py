import threading
import time

import pytest

from mmsr_jax.inference.pipeline import overlap


def test_every_job_is_read_computed_and_written_once() -> None:
    written, done = [], []

    def write(value: int) -> int:
        written.append(value)
        return value

    seconds = overlap(
        range(17), lambda job: 2 * job, lambda data: data + 1, write, writers=3, done=done.append
    )
    assert sorted(written) == done == [2 * job + 1 for job in range(17)]
    assert set(seconds) == {"read", "compute", "write"}
    assert overlap([], float, float, float, writers=1, done=done.append) == {}


def test_the_three_stages_of_three_jobs_run_at_once() -> None:
    together = threading.Barrier(3, timeout=20)

    def meet(job: int) -> int:
        if job == 0:
            together.wait()
        return job

    # The write of job 0, the computing of job 1 and the reading of job 2 wait for each other.
    overlap(
        range(4),
        lambda job: (meet(job - 2), job)[1],
        lambda job: (meet(job - 1), job)[1],
        meet,
        writers=1,
        done=lambda job: None,
    )


def test_slices_in_memory_are_bounded() -> None:
    read, written = [], []

    def slowly(job: int) -> int:
        time.sleep(0.005)
        written.append(job)
        return job

    def ahead(job: int) -> int:
        read.append(job)
        assert len(read) - len(written) <= 5  # read, computed, and two that are being written
        return job

    overlap(range(40), ahead, lambda job: job, slowly, writers=2, done=lambda job: None)


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_exception_of_any_stage_ends_it_and_what_was_written_is_done(stage: str) -> None:
    done: list[int] = []

    def broken(name: str) -> object:
        def call(job: int) -> int:
            if name == stage and job == 5:
                raise OSError(28, "No space left on device", "fine.nii")
            return job

        return call

    with pytest.raises(OSError, match="No space"):
        overlap(range(9), broken("read"), broken("compute"), broken("write"), writers=1,
                done=done.append)  # fmt: skip
    assert done == list(range(len(done)))
    assert len(done) in (3, 4, 5)
