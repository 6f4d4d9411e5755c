"""Command line: train on the GPUs or TPUs of a Kubernetes cluster that has JobSet.

    python -m launch.kubernetes --name=lungs --image=IMAGE --claim=scans --tpu=v5e:4x4 -- \
      python -m mmsr_jax.main --config=configs/cyclegan.py --config.data.directory=/data/dataset \
      --workdir=/data/runs/lungs

`--nodes=2 --gpus=8` instead of `--tpu` asks for GPUs, `--gpus` a node. The image is that of
launch/Dockerfile. Every process sees the claim, a volume that many nodes can write, as /data. A pod
that is evicted or preempted gets SIGTERM; all processes save and stop, and the JobSet starts them
again, which does not count as one of the `--restarts`.
"""

import math
import re
import subprocess
import sys
from typing import Any, NamedTuple

import yaml
from absl import app, flags

from data_pipelines.errors import UserError, reported_in_one_line
from launch.command import parse_flags_and_command

_NAME = flags.DEFINE_string("name", "", "Of the JobSet.")
_IMAGE = flags.DEFINE_string("image", "", "With this repository installed; launch/Dockerfile.")
_CLAIM = flags.DEFINE_string("claim", "", "PersistentVolumeClaim to mount as /data.")
_TPU = flags.DEFINE_string("tpu", "", "Kind and topology of a slice, as v5e:4x4 (GKE).")
_NODES = flags.DEFINE_integer("nodes", 1, "Nodes with GPUs.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 8, "GPUs of every node.", lower_bound=1)
_SELECTOR = flags.DEFINE_multi_string(
    "selector", [], "KEY=VALUE that a node must have, as cloud.google.com/gke-spot=true."
)
_RESTARTS = flags.DEFINE_integer("restarts", 3, "After failures.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run, and run nothing.")

_PREEMPTED = 143
_GRACE_S = 120  # for a step and a checkpoint
_PORT = 8476
_TPU_RESOURCE = "google.com/tpu"
_INDEX = "batch.kubernetes.io/job-completion-index"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}


class Nodes(NamedTuple):
    """What to run on; one process each.

    Attributes:
      number: how many.
      resource: name of what each has.
      per_node: so many of it.
      selector: labels that the nodes must have.
    """

    number: int
    resource: str
    per_node: int
    selector: dict[str, str]


def main(argv: list[str]) -> None:
    """Run the command line."""
    with reported_in_one_line():
        for flag in (_NAME, _IMAGE, _CLAIM):
            if not flag.value:
                raise UserError(f"--{flag.name} is missing; --help explains it")
        # Pods are named NAME-workers-0-NUMBER-SUFFIX, in a label of 63 characters.
        if not re.fullmatch("[a-z]([-a-z0-9]{0,38}[a-z0-9])?", _NAME.value):
            raise UserError(
                f"--name={_NAME.value}: must be up to 40 lower-case letters, digits and hyphens"
            )
        nodes = tpu_nodes(_TPU.value) if _TPU.value else gpu_nodes(_NODES.value, _GPUS.value)
        nodes.selector.update(_label(text) for text in _SELECTOR.value)
        manifest = yaml.safe_dump(
            jobset(_NAME.value, nodes, _IMAGE.value, _CLAIM.value, argv[1:], _RESTARTS.value),
            sort_keys=False,
        )
        if _DRY_RUN.value:
            print(f"kubectl apply -f - <<'END'\n{manifest}END")
            return
        sys.exit(
            subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode
        )


def gpu_nodes(number: int, per_node: int) -> Nodes:
    """`number` nodes with `per_node` GPUs each."""
    return Nodes(number, "nvidia.com/gpu", per_node, {})


def tpu_nodes(slice_name: str) -> Nodes:
    """The nodes of a slice such as v5e:4x4.

    Raises:
      UserError: there is no such kind, or its topology is no product of numbers.
    """
    kind, _, topology = slice_name.partition(":")
    if kind not in _ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", topology):
        raise UserError(
            f"--tpu={slice_name}: try v5e:4x4; the kinds are {', '.join(_ACCELERATORS)}"
        )
    chips = math.prod(map(int, topology.split("x")))
    per_node = 8 if topology == "2x4" else min(chips, 4)  # 2x4: of a machine with 8
    selector = {
        "cloud.google.com/gke-tpu-accelerator": _ACCELERATORS[kind],
        "cloud.google.com/gke-tpu-topology": topology,
    }
    return Nodes(max(1, chips // per_node), _TPU_RESOURCE, per_node, selector)


def jobset(
    name: str, nodes: Nodes, image: str, claim: str, command: list[str], restarts: int
) -> dict[str, Any]:
    """The manifest: one process a node, all of them started, stopped and restarted together."""
    job = {
        "completionMode": "Indexed",
        "completions": nodes.number,
        "parallelism": nodes.number,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "train",
                        "operator": "In",
                        "values": [_PREEMPTED],
                    },
                },
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": _pod(name, nodes, image, claim, command)},
    }
    failures = {
        "maxRestarts": restarts,
        "restartStrategy": "BlockingRecreate",  # no new process may meet an old one
        "rules": [
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }
    metadata: dict[str, Any] = {"name": name}
    if nodes.resource == _TPU_RESOURCE:  # all pods on one node pool, which is one slice
        metadata["annotations"] = {_EXCLUSIVE: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": failures,
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(name: str, nodes: Nodes, image: str, claim: str, command: list[str]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": command,
        "resources": {"limits": {nodes.resource: nodes.per_node}},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if nodes.resource != _TPU_RESOURCE:  # there GKE tells JAX, in variables of its own
        index = {"fieldPath": f"metadata.annotations['{_INDEX}']"}
        container["env"] = [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-workers-0-0.{name}:{_PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(nodes.number)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": index}},
        ]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "nodeSelector": nodes.selector,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL needs more than 64 MB
        ],
    }


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--selector={text}: must be KEY=VALUE")
    return key, value


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags_and_command)
