import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from commands import error_line, run

REQUIRED = ["--name=lungs", "--image=example.org/mmsr-jax:1", "--claim=scans"]
COMMAND = ["--", "python", "-m", "mmsr_jax.main", "--config=configs/cyclegan.py", "--a_b-c=it's"]


def strict(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


# What the definition of JobSet in its repository (config/components/crd/bases) allows of what is
# used here; the Job in it is checked against Kubernetes' own schema.
RULE = strict(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
        "onJobFailureReasons": {
            "type": "array",
            "items": {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]},
        },
    },
    ["name", "action"],
)
FAILURE_POLICY = strict(
    {
        "maxRestarts": {"type": "integer", "minimum": 0},
        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
        "rules": {"type": "array", "items": RULE},
    },
    [],
)
REPLICATED_JOB = strict(
    {
        "name": {"type": "string"},
        "replicas": {"type": "integer"},
        "template": strict({"spec": {"type": "object"}}, ["spec"]),
    },
    ["name", "template"],
)
JOBSET = strict(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": strict(
            {
                "name": {"type": "string"},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            ["name"],
        ),
        "spec": strict(
            {
                "failurePolicy": FAILURE_POLICY,
                "replicatedJobs": {"type": "array", "items": REPLICATED_JOB},
            },
            ["replicatedJobs"],
        ),
    },
    ["apiVersion", "kind", "metadata", "spec"],
)


def printed(*flags: str) -> dict[str, Any]:
    """The manifest that --dry-run prints, found valid."""
    result = run("launch.kubernetes", *REQUIRED, *flags, "--dry-run", *COMMAND)
    assert result.returncode == 0, result.stderr
    first, *manifest, last = result.stdout.splitlines()
    assert (first, last) == ("kubectl apply -f - <<'END'", "END")
    jobset = yaml.safe_load("\n".join(manifest))
    jsonschema.validate(jobset, JOBSET)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job | replicated["template"], version, strict=True)
    return jobset


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_gpus_know_the_address_of_the_first_pod() -> None:
    jobset = printed("--nodes=2", "--gpus=4", "--selector=cloud.google.com/gke-spot=true")
    job = job_of(jobset)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completions"] == job["parallelism"] == 2
    assert container["command"] == COMMAND[1:]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    address, number, index = container["env"]
    # NAME-JOB-0-INDEX.NAME is the host name of a JobSet's pod.
    assert address["value"].startswith("lungs-workers-0-0.lungs:")
    assert number == {"name": "JAX_NUM_PROCESSES", "value": "2"}
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert "annotations" not in jobset["metadata"]


@pytest.mark.parametrize(
    ("tpu", "nodes", "chips", "accelerator"),
    [
        ("v5e:1x1", 1, 1, "tpu-v5-lite-podslice"),
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v6e:16x16", 64, 4, "tpu-v6e-slice"),
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice"),
        ("v5p:2x2x1", 1, 4, "tpu-v5p-slice"),
    ],
)
def test_tpus_are_one_slice(tpu: str, nodes: int, chips: int, accelerator: str) -> None:
    jobset = printed(f"--tpu={tpu}")
    job = job_of(jobset)
    pod = job["template"]["spec"]
    assert job["completions"] == job["parallelism"] == nodes
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}
    assert "env" not in pod["containers"][0]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": tpu.partition(":")[2],
    }
    assert list(jobset["metadata"]["annotations"].values()) == ["cloud.google.com/gke-nodepool"]


def test_a_preemption_restarts_all_and_does_not_count() -> None:
    jobset = printed("--restarts=5")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    job = job_of(jobset)
    assert job["backoffLimit"] == 0  # any other status fails the job, and counts
    saved, disrupted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"]["values"] == [143]
    assert saved["action"] == disrupted["action"] == "FailJob"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_without_dry_run_kubectl_gets_the_manifest(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/arguments\ncat > {tmp_path}/manifest\nexit 4\n'
    )
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run("launch.kubernetes", *REQUIRED, *COMMAND, PATH=path).returncode == 4
    assert (tmp_path / "arguments").read_text() == "apply -f -\n"
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == printed()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*REQUIRED], "no command; write it after --"),
        (["--name=lungs", "--image=i", *COMMAND], "--claim is missing"),
        ([*REQUIRED, "--name=Lungs", *COMMAND], "--name=Lungs: must be"),
        ([*REQUIRED, "--tpu=v9:4x4", *COMMAND], "--tpu=v9:4x4: try v5e:4x4"),
        ([*REQUIRED, "--tpu=v5e:16", *COMMAND], "--tpu=v5e:16: try v5e:4x4"),
        ([*REQUIRED, "--selector=spot", *COMMAND], "--selector=spot: must be KEY=VALUE"),
    ],
)
def test_what_cannot_run_is_one_line(arguments: list[str], expected: str) -> None:
    assert expected in error_line(run("launch.kubernetes", *arguments))
