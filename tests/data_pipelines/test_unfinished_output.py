import contextlib
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.unfinished_output import unfinished_output

SETTINGS = {"input": "a", "box": [1, 2]}


def begin(path: Path, settings: dict = SETTINGS, slices: tuple[int, ...] = (0, 3)) -> None:
    """A run that writes some slices and is stopped."""
    with contextlib.suppress(KeyboardInterrupt), unfinished_output(path, settings) as output:
        for index in slices:
            output.record(index, {"value": index / 2})
        (output.folder / "payload").write_text("half")
        raise KeyboardInterrupt


def test_it_is_continued_by_the_same_settings_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "fine.nii"
    begin(path)
    assert not path.exists()
    with unfinished_output(path, {**SETTINGS, "box": (1, 2)}) as output:
        assert output.done() == {0: {"value": 0.0}, 3: {"value": 1.5}}
        assert (output.folder / "payload").exists()
    with unfinished_output(path, {**SETTINGS, "box": [1, 3]}) as output:
        assert output.done() == {}
        assert not (output.folder / "payload").exists()
    assert list(path.parent.iterdir()) == [], "nothing was recorded, so nothing stays"


def test_half_a_line_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fine.nii"
    begin(path)
    (ledger,) = (tmp_path / ".unfinished-fine.nii").glob("ledger-*")
    ledger.write_text(ledger.read_text() + '{"slice": 7, "va')
    with unfinished_output(path, SETTINGS) as output:
        assert set(output.done()) == {0, 3}
        output.record(5, {"value": 2.5})
        assert set(output.done()) == {0, 3, 5}


def test_processes_keep_ledgers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "fine.nii"
    with (
        unfinished_output(path, SETTINGS) as first,
        unfinished_output(path, SETTINGS, process=1) as second,
    ):
        first.record(0, {})
        second.record(1, {})
        assert first.done() == second.done() == {0: {}, 1: {}}


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "fine.nii"
    with unfinished_output(path, SETTINGS) as output:
        with (
            pytest.raises(UserError, match=r"fine\.nii is being written by another process"),
            unfinished_output(path, {}),
        ):
            pass
        output.record(0, {})
        assert output.done() == {0: {}}


def test_everything_appears_at_once_and_the_folder_goes(tmp_path: Path) -> None:
    path = tmp_path / "fine.nii"
    path.write_text("old")
    with unfinished_output(path, SETTINGS) as output:
        output.record(0, {})
        payloads = []
        for name in ("map.nii", "fine.nii"):
            (output.folder / name).write_text(name)
            payloads.append((output.folder / name, tmp_path / name))
        assert path.read_text() == "old"
        output.publish(payloads)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "map.nii": "map.nii",
        "fine.nii": "fine.nii",
    }
