"""Readers fed with mutants of real files, in a process that must survive them.

python tests/helpers/hostile_input.py --mutants=2000 --seed=1 --readers=dicom,nifti
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from hostile_images import IMAGE_SUBJECTS  # noqa: E402
from hostile_records import RECORD_SUBJECTS  # noqa: E402
from hostile_subject import subject_of  # noqa: E402

_PATIENCE_S = 20
_START_S = 300


class _Worker:
    """The reading process, started again when a mutant ended it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("hostile_worker.py"))]
        self._command += [kind, str(folder)]
        self._folder = folder
        self._start()

    def _start(self) -> None:
        paths = os.pathsep.join(sys.path[:2])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ
            | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "TMPDIR": str(self._folder)},
        )
        answer = self._answer(_START_S)
        assert answer["outcome"] == "ready", answer

    def read(self, path: Path) -> dict[str, str]:
        assert self._process.stdin
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        answer = self._answer(_PATIENCE_S)
        if self._process.poll() is not None:
            self._start()
        return answer

    def _answer(self, patience_s: float) -> dict[str, str]:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            self._process.kill()
            self._process.wait()
            return {"outcome": "failed", "detail": f"no answer in {patience_s} s"}
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace")[-2000:]
            return {"outcome": "failed", "detail": f"ended with {status}: {tail}"}
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def campaign(
    kind: str, mutants: int, seed: int, folder: Path, keep: Path | None = None
) -> tuple[Counter[str], list[str]]:
    """How many mutants of a kind were read and refused, and what failed.

    Args:
      kind: as in `hostile_subject.subject_of`.
      mutants: how many to try.
      seed: of their making; mutant n of a seed is always the same.
      folder: empty, to work in.
      keep: folder for copies of the failing ones.
    """
    subject = subject_of(kind)
    original = folder / "original"
    original.mkdir(parents=True)
    subject.make(original)
    worker = _Worker(kind, folder)
    outcomes, failures = Counter[str](), []
    try:
        for number in range(mutants):
            copy = folder / f"mutant{number}"
            shutil.copytree(original, copy)
            random = Random(f"{kind} {seed} {number}")
            victims = sorted(file for file in copy.rglob(subject.victims) if file.is_file())
            victim = random.choice(victims)
            victim.write_bytes(subject.mutant(victim.read_bytes(), random))
            answer = worker.read(subject.path(copy))
            outcomes[answer["outcome"]] += 1
            if answer["outcome"] == "failed":
                name = f"{kind}, seed {seed}, mutant {number}, {victim.relative_to(copy)}"
                failures.append(f"{name}: {answer['detail']}")
                if keep:
                    shutil.copytree(copy, keep / f"{kind}-{seed}-{number}", dirs_exist_ok=True)
            if os.environ.get("SHOW"):
                print(number, victim.relative_to(copy), answer["outcome"], answer["detail"][:200])
            shutil.rmtree(copy)
    finally:
        worker.close()
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join((*IMAGE_SUBJECTS, *RECORD_SUBJECTS)))
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    for kind in options.readers.split(","):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcomes, failures = campaign(
                kind, options.mutants, options.seed, Path(folder), options.keep
            )
        print(f"{kind}: {dict(outcomes)} in {time.monotonic() - start:.0f} s", flush=True)
        for failure in failures:
            print(f"  {failure}", flush=True)


if __name__ == "__main__":
    main()
