import contextlib
import json
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.unfinished_output import finish_publishing, unfinished_output

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
        for name in ("fine_map.nii", "fine.nii"):
            (output.folder / name).write_text(name)
            payloads.append((output.folder / name, tmp_path / name))
        assert path.read_text() == "old"
        output.publish(payloads)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "fine_map.nii": "fine_map.nii",
        "fine.nii": "fine.nii",
    }


@pytest.mark.parametrize(
    "entry",
    [
        ["volume.nii", "../fine.nii"],
        ["volume.nii", "/tmp/fine.nii"],
        ["volume.nii", "scan.nii"],
        ["volume.nii", ".."],
        ["volume.nii", ""],
        ["../scan.nii", "fine.nii"],
        ["", "fine.nii"],
        ["volume.nii", 5],
        ["volume.nii"],
    ],
)
def test_a_journal_publishes_nothing_elsewhere_and_nothing_of_others(
    tmp_path: Path, entry: list[object]
) -> None:
    (tmp_path / "out" / ".unfinished-fine.nii").mkdir(parents=True)
    (tmp_path / "out" / ".unfinished-fine.nii" / "volume.nii").write_text("hostile")
    (tmp_path / "out" / "scan.nii").write_text("of another")
    journal = json.dumps([["volume.nii", "fine_map.nii"], entry])
    (tmp_path / "out" / ".unfinished-fine.nii" / "publish.json").write_text(journal)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"publish\.json is damaged .*; delete"):
        finish_publishing(tmp_path / "out" / "fine.nii")
    assert sorted(path for path in tmp_path.rglob("*") if "lock" not in path.name) == before


def test_lines_of_a_ledger_that_are_none_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fine.nii"
    with unfinished_output(path, SETTINGS) as output:
        output.record(0, {})
        ledger = output.folder / "ledger-0.jsonl"
        ledger.write_text(ledger.read_text() + '5\n[]\n{"slice": "1"}\n{}\n' + "[" * 100_000)
        assert output.done() == {0: {}}
