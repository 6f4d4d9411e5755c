"""`prepare --runner=beam`, by Beam's runner for one machine; skipped where there is no Beam."""

import subprocess
import sys

import preparing
import pytest
from preparing import RECORDS, hashes, killed, run, small_flags, small_options

from data_pipelines import dataset_card
from data_pipelines.prepare import prepare


@pytest.fixture(scope="module", autouse=True)
def _beam():
    found = subprocess.run([sys.executable, "-c", "import apache_beam"], capture_output=True)
    if found.returncode:
        pytest.skip("Apache Beam is not installed")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return preparing.write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def expected(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("local") / "dataset"
    prepare(small_options(scans, output))
    return hashes(output)


@pytest.mark.parametrize(
    "options",
    [(), ("--beam-options=--direct_num_workers=2,--direct_running_mode=multi_threading",)],
)
def test_beam_makes_what_the_local_runner_makes(scans, tmp_path, expected, options):
    output = tmp_path / "dataset"
    done = run(*small_flags(scans, output), "--runner=beam", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert hashes(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_worker_processes_make_it_too(scans, tmp_path, expected):
    options = "--direct_num_workers=2,--direct_running_mode=multi_processing"
    flags = [f"--beam-options={options}", "--beam-options=--job_name=test"]
    done = run(*small_flags(scans, tmp_path / "dataset"), "--runner=beam", *flags)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "dataset") == expected


def test_beam_goes_on_from_what_was_staged_without_it(scans, tmp_path, expected):
    killed(scans, tmp_path / "dataset", RECORDS)
    done = run(*small_flags(scans, tmp_path / "dataset"), "--runner=beam")
    assert done.stderr == "7 of 7 cases were already staged\n"
    assert hashes(tmp_path / "dataset") == expected


def test_bad_cases(tmp_path):
    scans, output = preparing.write_scans(tmp_path / "scans"), tmp_path / "made" / "dataset"
    (scans / "clinical" / "z.nii.gz").write_text("not a scan")
    flags = [*small_flags(scans, output), "--runner=beam"]
    failed = run(*flags)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {scans}/clinical/z.nii.gz cannot be read")
    assert failed.stderr.count("\n") == 1
    done = run(*flags, "--skip-bad")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first == "7 of 8 cases were already staged"
    assert second.startswith(f"skipped: {scans}/clinical/z.nii.gz")
    assert [case.name for case in dataset_card.load(output).skipped] == ["z.nii.gz"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--runner=NoSuchRunner", "Unexpected pipeline runner: NoSuchRunner"),
        ("--direct_num_workers=two", "argument --direct_num_workers: invalid int value: 'two'"),
        ("--no_such_option=1", "Beam knows no no_such_option; check its name"),
    ],
)
def test_options_that_beam_refuses(scans, tmp_path, options, words):
    flags = ["--runner=beam", f"--beam-options={options}"]
    failed = run(*small_flags(scans, tmp_path / "dataset"), *flags)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: --beam_options")
    assert words in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
