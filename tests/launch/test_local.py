import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import error_line, finish, run, start

# Stands for a training: notes its number and variables, then does as its argument says.
PROGRAM = """
import os, pathlib, signal, subprocess, sys, time
number, folder = os.environ["JAX_PROCESS_ID"], pathlib.Path(sys.argv[1])
attempt = len(list(folder.glob(f"{number}.*")))
def stop(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if "orphan" in sys.argv[2]:
    subprocess.Popen(["sleep", "60"])
(folder / f"{number}.{attempt}").write_text(str(os.getpgid(0)))
print("hello", os.environ["JAX_NUM_PROCESSES"], os.environ.get("XLA_FLAGS"), flush=True)
exec(sys.argv[2])
"""
WAIT = "time.sleep(60)"


def program(folder: Path, does: str) -> list[str]:
    return ["--", sys.executable, "-c", PROGRAM, str(folder), does]


def started(folder: Path, *names: str) -> list[int]:
    """Waits for these processes, `number.attempt`; their process groups."""
    for _ in range(300):
        if all((folder / name).exists() and (folder / name).read_text() for name in names):
            return [int((folder / name).read_text()) for name in names]
        time.sleep(0.1)
    raise AssertionError(f"of {names} only {os.listdir(folder)} started")


def ended(group: int) -> bool:
    """Whether no living process is left in the group, within some seconds."""
    for _ in range(50):
        if not any(_living_in(group, path) for path in Path("/proc").glob("[0-9]*/stat")):
            return True
        time.sleep(0.1)
    return False


def _living_in(group: int, stat: Path) -> bool:
    try:
        state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
    except OSError:  # gone meanwhile
        return False
    return state != "Z" and int(its_group) == group


def test_processes_know_their_number_and_devices(tmp_path: Path) -> None:
    result = run("launch.local", "--processes=3", "--devices=4", *program(tmp_path, ""))
    assert result.returncode == 0, result.stderr
    greeting = "hello 3 --xla_force_host_platform_device_count=4"
    assert sorted(result.stdout.splitlines()) == [f"1| {greeting}", f"2| {greeting}", greeting]
    assert {path.name for path in tmp_path.iterdir()} == {"0.0", "1.0", "2.0"}


def test_the_first_failure_is_the_status(tmp_path: Path) -> None:
    does = "if number == '1': sys.exit(5)\ntime.sleep(1)\nos.kill(os.getpid(), 9)"
    result = run("launch.local", "--processes=3", *program(tmp_path, does))
    assert result.returncode == 5
    assert "launch.local: process 2 ended with status 137" in result.stderr


def test_who_does_not_stop_after_a_failure_is_killed(tmp_path: Path) -> None:
    does = f"if number == '1': sys.exit(7)\n{WAIT}"
    result = run("launch.local", "--grace=1", *program(tmp_path, does))
    assert result.returncode == 7
    assert "launch.local: process 0 did not stop; killed" in result.stderr
    assert ended(*started(tmp_path, "0.0"))


def test_a_signal_reaches_all_and_143_comes_back(tmp_path: Path) -> None:
    launcher = start("launch.local", "--restarts=3", *program(tmp_path, WAIT))
    started(tmp_path, "0.0", "1.0")
    launcher.send_signal(signal.SIGTERM)
    result = finish(launcher, timeout_s=30)
    assert result.returncode == 143
    assert "saved\n" in result.stdout
    assert "1| saved" in result.stdout
    assert not (tmp_path / "0.1").exists()  # whoever stops the launcher wants no restart


def test_a_second_signal_kills(tmp_path: Path) -> None:
    does = f"signal.signal(signal.SIGINT, lambda *_: None); (folder / 'deaf').touch(); {WAIT}"
    launcher = start("launch.local", *program(tmp_path, does))
    groups = started(tmp_path, "0.0", "1.0")
    while not (tmp_path / "deaf").exists():
        time.sleep(0.1)
    for _ in range(2):
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert finish(launcher, timeout_s=30).returncode == 137
    assert all(map(ended, groups))


def test_a_preempted_training_is_started_again(tmp_path: Path) -> None:
    does = "sys.exit(143 if attempt < 2 else 0)"
    result = run("launch.local", "--restarts=2", *program(tmp_path, does))
    assert result.returncode == 0
    assert "launch.local: status 143; restart 2 of 2" in result.stderr
    assert (tmp_path / "1.2").exists()
    assert run("launch.local", "--restarts=1", *program(tmp_path, "sys.exit(3)")).returncode == 3


def test_a_killed_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    launcher = start("launch.local", *program(tmp_path, f"{WAIT}  # orphan"))
    groups = started(tmp_path, "0.0", "1.0")
    launcher.kill()
    finish(launcher, timeout_s=30)
    assert all(map(ended, groups))


def test_dry_run_prints_what_would_run(tmp_path: Path) -> None:
    does = "print('a b')"
    result = run("launch.local", "--dry-run", "--devices=2", *program(tmp_path, does))
    assert result.returncode == 0
    assert not list(tmp_path.iterdir())
    assert "JAX_PROCESS_ID=1" in result.stdout
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    second = result.stdout[result.stdout.index("\nJAX_") + 1 :]
    pasted = subprocess.run(["bash", "-c", second], env=environment, capture_output=True, text=True)
    assert pasted.stdout.splitlines() == [
        "hello 2 --xla_force_host_platform_device_count=2",
        "a b",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no command; write it after --"),
        (["--processes=0", "--", "true"], "--processes"),
        (["--", "no-such-command"], "no-such-command: No such file or directory"),
    ],
)
def test_what_cannot_run_is_one_line(arguments: list[str], expected: str) -> None:
    assert expected in error_line(run("launch.local", *arguments))


def test_jax_finds_the_other_processes(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "import os, jax\n"
        "jax.distributed.initialize(\n"
        "    num_processes=int(os.environ['JAX_NUM_PROCESSES']),\n"
        "    process_id=int(os.environ['JAX_PROCESS_ID']),\n"
        ")\n"
        "print(jax.process_count(), jax.process_index(), jax.device_count())\n"
    )
    result = run("launch.local", "--devices=2", "--", sys.executable, script)
    assert result.returncode == 0, result.stderr
    assert "2 0 4\n" in result.stdout
    assert "1| 2 1 4\n" in result.stdout
