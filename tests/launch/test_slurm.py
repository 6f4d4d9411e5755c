"""There is no Slurm here: stand-ins for its commands start the tasks as srun would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY

SCRIPT = REPOSITORY / "launch" / "slurm.sh"

SBATCH = """
while sys.argv[1].startswith("--"):
    name, _, value = sys.argv.pop(1)[2:].partition("=")
    options[name] = value
log = options["output"].replace("%x", options["job-name"]).replace("%j", "4711")
environment = os.environ | {
    "SLURM_JOB_ID": "4711",
    "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    "FAKE_NODES": options["nodes"],
    "FAKE_TASKS_PER_NODE": options["ntasks-per-node"],
    "FAKE_SIGNAL": options["signal"],
}
spool = pathlib.Path("slurm_script")
spool.write_text(pathlib.Path(sys.argv[1]).read_text())
for restart in itertools.count():
    with open(log, "a" if options["open-mode"] == "append" else "w") as output:
        environment["SLURM_RESTART_COUNT"] = str(restart)
        command = ["bash", spool, *sys.argv[2:]]
        status = subprocess.run(command, env=environment, stdout=output, stderr=output).returncode
    requeue = pathlib.Path("requeue.4711")
    if not (requeue.exists() and "requeue" in options):
        sys.exit(status)
    requeue.unlink()
"""

SRUN = """
assert os.environ["SRUN_CPUS_PER_TASK"] == "8"
while sys.argv[1].startswith("--"):
    options.update([sys.argv.pop(1)[2:].split("=")])
assert options == {"kill-on-bad-exit": "0"}
nodes, per_node = int(os.environ["FAKE_NODES"]), int(os.environ["FAKE_TASKS_PER_NODE"])
tasks = [
    subprocess.Popen(
        sys.argv[1:],
        env=os.environ | {
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % per_node),
        },
    )
    for task in range(nodes * per_node)
]
if os.environ["SLURM_RESTART_COUNT"] == "0":  # the time limit comes near
    name, _ = os.environ["FAKE_SIGNAL"].split("@")
    assert not name.startswith("B:")
    while len(list(pathlib.Path().glob("ready.*"))) < len(tasks):
        time.sleep(0.1)
        assert all(task.poll() is None for task in tasks)
    for task in tasks:
        task.send_signal(getattr(signal, "SIG" + name))
sys.exit(max(task.wait() % 256 for task in tasks))
"""

SCONTROL = """
assert sys.argv[1] == "requeue"
pathlib.Path("requeue." + sys.argv[2]).touch()
"""

# Stands for the training: it is what `python -m mmsr_jax.main` finds first.
TRAINING = """
import os, pathlib, signal, sys, time, jax

jax.distributed.initialize()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
restart = os.environ["SLURM_RESTART_COUNT"]
numbers = jax.process_index(), jax.process_count(), jax.device_count()
words = "restart", restart, "process", *numbers, *sys.argv[1:]
sys.stdout.write(" ".join(map(str, words)) + "\\n")
sys.stdout.flush()
if restart == "0":
    pathlib.Path(f"ready.{jax.process_index()}").touch()
    time.sleep(60)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with Slurm's commands in bin and a training of its own."""
    (tmp_path / "bin").mkdir()
    for name, body in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        imports = "import itertools, os, pathlib, signal, subprocess, sys, time\noptions = {}"
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n{imports}\n{body}")
        path.chmod(0o755)
    (tmp_path / "mmsr_jax").mkdir()
    (tmp_path / "mmsr_jax" / "main.py").write_text(TRAINING)
    return tmp_path


def slurm(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_trains_on_all_nodes_and_comes_back_after_the_time_limit(cluster: Path) -> None:
    result = slurm(cluster, "--nodes=2", "--gpus=1", "--", "--config=a file", "--workdir=runs/a")
    log = (cluster / "mmsr-jax-4711.log").read_text()
    assert result.returncode == 0, log
    lines = sorted(line for line in log.splitlines() if line.startswith("restart"))
    assert lines == [
        f"restart {restart} process {process} 2 2 --config=a file --workdir=runs/a"
        for restart in (0, 1)
        for process in (0, 1)
    ]


def test_a_failure_is_not_requeued(cluster: Path) -> None:
    (cluster / "mmsr_jax" / "main.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "open('ready.0', 'w')\n"
        "signal.pause()\n"
    )
    assert slurm(cluster, "--gpus=1", "--", "--config=c").returncode == 3


def test_dry_run_prints_what_would_run(cluster: Path) -> None:
    arguments = ("--nodes=4", "--gpus=2", "--time=8:00:00", "--dry-run", "--", "--config=it's")
    submission, step = slurm(cluster, *arguments).stdout.splitlines()
    assert submission.startswith("sbatch --job-name=mmsr-jax --nodes=4 --ntasks-per-node=2 ")
    assert " --gpus-per-node=2 " in submission
    assert submission.endswith(f" --time=8:00:00 {SCRIPT} in-job '--config=it'\\''s'")
    assert step == "srun --kill-on-bad-exit=0 python -m mmsr_jax.main '--config=it'\\''s'"
    assert not list(cluster.glob("*.log"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nodes=2"], "no flags of mmsr_jax.main; write them after --"),
        (["--time", "8", "--", "--config=c"], "unexpected argument '8'"),
    ],
)
def test_what_cannot_run_is_one_line(cluster: Path, arguments: list[str], expected: str) -> None:
    result = slurm(cluster, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {expected}")
    assert not list(cluster.glob("*.log"))
