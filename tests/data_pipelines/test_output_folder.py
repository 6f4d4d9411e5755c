import os
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.output_folder import check_writable, made
from data_pipelines.volumes import check_output


def test_folder_that_may_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "v.nii", tmp_path / "not" / "yet" / "v.nii", Path("v.nii"), Path("/")):
        check_writable(path)
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for parent in (tmp_path / "file", tmp_path / "broken"):
        for path in (parent / "v.nii", parent / "new" / "v.nii"):
            with pytest.raises(UserError) as caught:
                check_output(path)
            said = f"{path} cannot be written: {parent} is no folder; choose another name"
            assert str(caught.value) == said


def test_locked_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for path in (tmp_path / "v.nii", tmp_path / "new" / "v.nii"):
        with pytest.raises(UserError) as caught:
            check_output(path)
        assert str(caught.value).startswith(
            f"{path} cannot be written: Permission denied in {tmp_path};"
        )


def test_new_folders_vanish_unless_they_hold_something(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(KeyError), made(tmp_path / "old" / "new" / "newer"):
        raise KeyError
    assert list((tmp_path / "old").iterdir()) == []
    with pytest.raises(KeyError), made(tmp_path / "old"):
        raise KeyError
    assert (tmp_path / "old").is_dir()
    with made(tmp_path / "old" / "new" / "newer"):
        (tmp_path / "old" / "new" / "newer" / "file").touch()
    assert (tmp_path / "old" / "new" / "newer" / "file").is_file()
