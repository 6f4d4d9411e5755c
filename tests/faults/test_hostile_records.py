"""What the project reads again, forged: read, or refused in one line."""

from pathlib import Path

import pytest
from hostile_input import campaign

# Kind → how many mutants, which are made within seconds, and the outcomes that are among theirs.
# The longer campaigns of the command line also read damaged archives, and cards by TensorFlow.
BOTH = {"read", "refused"}
KINDS = {
    "card_resident": (40, BOTH),
    "records_resident": (40, BOTH),
    "records_batches": (6, BOTH),
    "exported_member": (40, BOTH),
    "run_texts": (8, BOTH),
    "run_place": (20, {"refused"}),
    "run_meta": (6, BOTH),
    "run_checkpoint": (6, BOTH),
    "run_resumed": (4, {"read"}),  # from the checkpoint before
    "publishing": (40, BOTH),
    "unfinished": (20, {"read"}),
    "staged": (40, BOTH),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    mutants, expected = KINDS[kind]
    outcomes, failures = campaign(kind, mutants, 11, tmp_path / "mutants")
    assert not failures, "\n".join(failures)
    assert expected <= set(outcomes)
