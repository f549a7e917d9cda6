"""Output folders: whole or not at all, and never somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.lab.folder import whole


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with whole(target) as building:
        (building / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert contents(target.parent) == ["out"]


def test_earlier_output_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("a", "b"):
        with whole(target) as building:
            (building / name).touch()
    assert (target / "b").exists()
    assert not (target / "a").exists()
    assert contents(tmp_path) == ["out"]


def test_error_leaves_the_earlier_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole(target) as building:
        (building / "a").touch()
    before = contents(target)
    with pytest.raises(IsADirectoryError), whole(target) as building:
        building.write_text("a folder is no file")
    assert contents(target) == before
    assert contents(tmp_path) == ["out"]


def test_somebody_elses_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").touch()
    with (
        pytest.raises(InputError, match="letters: exists and is no earlier output"),
        whole(tmp_path / "letters"),
    ):
        pytest.fail("the block ran")
    assert contents(tmp_path / "letters") == ["dear"]


def test_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole(tmp_path / "out") as building:
        (building / "a").touch()
    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("below", ["out", "deep/out"])
def test_folder_that_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), whole(tmp_path / "file" / below):
        pytest.fail("the block ran")
    assert contents(tmp_path) == ["file"]


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="no earlier output"), whole(tmp_path / "out"):
        pytest.fail("the block ran")
    assert (tmp_path / "out").read_text() == "mine"
