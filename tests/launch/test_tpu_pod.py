"""There is no cloud here: a stand-in for gcloud keeps a slice and a bucket in folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "launch").glob("*.sh"))
FLAGS = ["--name=lungs", "--zone=us-west4-a", "--bucket=gs://scans"]
TRAINING = ["--", "--config=configs/cyclegan.py:demo", "--config.name=it's"]

GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys

cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
with open(cloud / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
words = [word for word in sys.argv[1:] if not word.startswith("--")]
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
request, node = cloud / "request", cloud / "node"


def workers():
    wanted = options["worker"]
    return [cloud / f"worker{w}" for w in ((0, 1) if wanted == "all" else (int(wanted),))]


def copy(source, target):
    assert source.exists(), source
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def local(path, worker):
    if path.startswith("lungs:"):
        return worker / path.removeprefix("lungs:")
    return pathlib.Path(path.replace("gs://", f"{cloud}/gs/"))


match words:
    case "compute", "tpus", "queued-resources", "create", "lungs":
        assert not request.exists()
        assert options["node-id"] == "lungs"
        request.write_text("PROVISIONING")
    case "compute", "tpus", "queued-resources", "list":
        print("another\\tFAILED")
        if request.exists():
            print(f"lungs\\t{request.read_text()}")
            if request.read_text() == "PROVISIONING":
                request.write_text("ACTIVE")
                node.write_text("READY")
                for name in ("worker0", "worker1"):
                    (cloud / name).mkdir()
    case "compute", "tpus", "tpu-vm", "list":
        print(f"lungs\\t{node.read_text()}" if node.exists() else "", end="")
    case "compute", "tpus", "queued-resources", "delete", "lungs":
        assert {"force", "quiet"} <= options.keys()
        for worker in cloud.glob("worker*"):
            shutil.rmtree(worker)
        request.unlink()
        node.unlink(missing_ok=True)
    case "compute", "tpus", "tpu-vm", "ssh", "lungs":
        environment = os.environ | {"PATH": f"{cloud}/on_worker:{os.environ['PATH']}"}
        command = ["bash", "-c", options["command"]]
        started = [subprocess.Popen(command, cwd=w, env=environment) for w in workers()]
        sys.exit(max(process.wait() for process in started))
    case "compute", "tpus", "tpu-vm", "scp", source, target:
        for worker in workers():
            end = local(target, worker)
            if "recurse" in options:
                end = end / local(source, worker).name
            copy(local(source, worker), end)
    case "storage", "rsync", source, target:
        copy(local(source, None), local(target, None))
    case _:
        sys.exit(f"unknown to this gcloud: {sys.argv}")
"""

# Stands for the environment that uv makes on a worker, and for the training in it, whose first
# attempts end as the file `fate` says, a line an attempt.
PYTHON3 = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >> "$FAKE_CLOUD/python3"
if [[ $* == "-m uv venv"* ]]; then
  mkdir -p .venv/bin && cp "$FAKE_CLOUD/training" .venv/bin/python
fi
"""
TRAINING_PROGRAM = """#!/usr/bin/env bash
set -euo pipefail
[[ $PWD == *worker0* ]] || exit 0
[[ -e dataset/card && -e pyproject.toml ]]
echo "$@"
mkdir -p runs/lungs "$FAKE_CLOUD/gs/scans/runs/lungs/checkpoints"
echo step >> "$FAKE_CLOUD/gs/scans/runs/lungs/checkpoints/steps"
cp "$FAKE_CLOUD/gs/scans/runs/lungs/checkpoints/steps" runs/lungs/metrics.jsonl
attempt=$(wc -l < runs/lungs/metrics.jsonl)
fate=$(sed -n "${attempt}p" "$FAKE_CLOUD/fate")
case $fate in
  SUSPENDED) echo SUSPENDED > "$FAKE_CLOUD/request" && rm "$FAKE_CLOUD/node" ;;
  PREEMPTED) echo PREEMPTED > "$FAKE_CLOUD/node" ;;
  *) exit "$fate" ;;
esac
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A folder with a repository and what gcloud sees."""
    repository, cloud = tmp_path / "repository", tmp_path / "cloud"
    for folder in (repository / "launch", cloud / "bin", cloud / "on_worker"):
        folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "launch" / "tpu_pod.sh", repository / "launch")
    (repository / "pyproject.toml").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], cwd=repository, check=True)
    for path, text in (
        (cloud / "bin" / "gcloud", f"#!{sys.executable}\n{GCLOUD}"),
        (cloud / "on_worker" / "python3", PYTHON3),
        (cloud / "training", TRAINING_PROGRAM),
    ):
        path.write_text(text)
        path.chmod(0o755)
    dataset = cloud / "gs" / "scans" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "card").touch()
    return cloud


def tpu_pod(cloud: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = f"{cloud}/bin:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", cloud.parent / "repository" / "launch" / "tpu_pod.sh", *arguments],
        env=os.environ | {"PATH": path, "FAKE_CLOUD": str(cloud)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def changes(cloud: Path) -> list[str]:
    """What gcloud was asked to create and delete."""
    lines = [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
    return [line[3] for line in lines if line[3] in ("create", "delete")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_is_content(script: Path) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_watch_trains_to_the_end_through_a_preemption(cloud: Path, how: str) -> None:
    (cloud / "fate").write_text(f"{how}\n143\n1\n0\n")
    result = tpu_pod(cloud, "watch", *FLAGS, "--spot", "--every=0.3", *TRAINING)
    assert result.returncode == 0, result.stderr
    assert changes(cloud) == ["create", "delete", "create", "delete"]
    assert not (cloud / "request").exists()
    run = cloud.parent / "repository" / "runs" / "lungs"
    assert (run / "checkpoints" / "steps").read_text() == "step\n" * 4
    assert (run / "metrics.jsonl").read_text() == "step\n" * 4
    flags = "--config=configs/cyclegan.py:demo --config.name=it's --config.data.directory=dataset"
    places = "--workdir=runs/lungs --checkpoints=gs://scans/runs/lungs/checkpoints"
    attempts = (run / "train.log").read_text().splitlines()
    assert attempts == [f"-m mmsr_jax.main {flags} {places}"] * 3  # of the second slice
    assert "-m uv pip install --quiet -e .[tpu,buckets] -c" in (cloud / "python3").read_text()


def test_watch_gives_up_after_failures_and_leaves_nothing_to_pay(cloud: Path) -> None:
    (cloud / "fate").write_text("7\n" * 9)
    result = tpu_pod(cloud, "watch", *FLAGS, "--every=0.3", *TRAINING)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: gave up after 3 failures")
    assert changes(cloud) == ["create", "delete"]
    steps = cloud.parent / "repository" / "runs" / "lungs" / "checkpoints" / "steps"
    assert steps.read_text() == "step\n" * 3


def test_status_and_fetch_one_by_one(cloud: Path) -> None:
    (cloud / "fate").write_text("0\n")
    assert tpu_pod(cloud, "create", *FLAGS, "--type=v6e-8").returncode == 0
    created = json.loads((cloud / "calls").read_text())
    assert {"--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"} <= set(created)
    tpu_pod(cloud, "status", *FLAGS)  # makes it ready
    for command in (["install"], ["train", *TRAINING]):
        result = tpu_pod(cloud, command[0], *FLAGS, *command[1:])
        assert result.returncode == 0, result.stderr
    for _ in range(20):
        status = tpu_pod(cloud, "status", *FLAGS).stdout
        if "running" not in status and ": 0\n" in status:
            break
    assert "lungs\tACTIVE\n" in status
    assert status.endswith("--checkpoints=gs://scans/runs/lungs/checkpoints\n")
    assert tpu_pod(cloud, "fetch", *FLAGS).returncode == 0
    assert (cloud.parent / "repository" / "runs" / "lungs" / "metrics.jsonl").exists()
    assert tpu_pod(cloud, "delete", *FLAGS).returncode == 0
    result = tpu_pod(cloud, "fetch", *FLAGS)  # what the bucket has
    assert result.returncode == 0
    assert "the logs on the slice were not fetched" in result.stderr


@pytest.mark.parametrize(
    "command", ["create", "install", "train", "status", "fetch", "delete", "watch"]
)
def test_dry_run_prints_and_does_nothing(cloud: Path, command: str) -> None:
    result = tpu_pod(cloud, command, *FLAGS, "--dry-run", *TRAINING)
    assert result.returncode == 0, result.stderr
    assert not (cloud / "calls").exists()
    assert not (cloud.parent / "repository" / "runs").exists()
    assert "gcloud " in result.stdout
    assert subprocess.run(["bash", "-n"], input=result.stdout, text=True).returncode == 0


def test_what_dry_run_prints_is_what_runs(cloud: Path) -> None:
    """Pasted into a shell, the lines of `train` ask gcloud for the same as `train` itself."""
    printed = tpu_pod(cloud, "train", *FLAGS, "--dry-run", *TRAINING).stdout
    gcloud = cloud / "bin" / "gcloud"
    gcloud.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> {cloud}/asked\n')
    tpu_pod(cloud, "train", *FLAGS, *TRAINING)
    asked = (cloud / "asked").read_text()
    (cloud / "asked").unlink()
    path = f"{cloud}/bin:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", printed], env=os.environ | {"PATH": path}, check=True)
    assert (cloud / "asked").read_text() == asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["paint"], "'paint' is none of create, install"),
        (["status", "--zone=z"], "--name= is no name of a slice and run"),
        (["status", "--name=lungs"], "--zone is missing"),
        (["fetch", "--name=lungs", "--zone=z"], "--bucket is missing"),
        (["train", *FLAGS], "no flags of mmsr_jax.main; write them behind --"),
        (["create", *FLAGS, "--type=h100"], "--type=h100 is none of v4-N"),
        (["create", *FLAGS, "--config=c"], "unexpected argument '--config=c'"),
    ],
)
def test_what_cannot_run_is_one_line(cloud: Path, arguments: list[str], expected: str) -> None:
    result = tpu_pod(cloud, *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {expected}")
    assert not (cloud / "calls").exists()
