"""Which file of one set belongs to which of the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.couples import Couple, find_couples
from mmulab.errors import InputError


def made(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def test_folders_are_matched_by_path_whatever_the_compression(tmp_path: Path) -> None:
    a = made(tmp_path / "a", "sh/x.jsonl.xz", "sh/only.jsonl", "y.jsonl")
    b = made(tmp_path / "b", "sh/x.jsonl", "y.jsonl.gz", "tdp/x.jsonl")
    assert find_couples(a, b) == [
        Couple("sh/only", Path(a, "sh/only.jsonl"), None),
        Couple("sh/x", Path(a, "sh/x.jsonl.xz"), Path(b, "sh/x.jsonl")),
        Couple("tdp/x", None, Path(b, "tdp/x.jsonl")),
        Couple("y", Path(a, "y.jsonl"), Path(b, "y.jsonl.gz")),
    ]


def test_two_files_belong_together_and_a_file_finds_its_name_in_a_folder(tmp_path: Path) -> None:
    b = made(tmp_path / "b", "x.jsonl", "y.jsonl")
    made(tmp_path, "x.jsonl.xz")
    file, x, y = tmp_path / "x.jsonl.xz", Path(b, "x.jsonl"), Path(b, "y.jsonl")
    assert find_couples(str(file), str(y)) == [Couple("x", file, y)]
    assert find_couples(str(file), b) == [Couple("x", file, x)]
    assert find_couples(b, str(file)) == [Couple("x", x, file)]


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    a = made(tmp_path / "a", "x.jsonl", "x.jsonl.gz")
    b = made(tmp_path / "b", "y.jsonl")
    with pytest.raises(InputError, match=r"x\.jsonl: the scenario is also in .*x\.jsonl\.gz; keep one"):
        find_couples(a, b)
    with pytest.raises(InputError, match="b: no recording 'x' in this folder; name the other file too"):
        find_couples(str(Path(a, "x.jsonl")), b)
    with pytest.raises(InputError, match="no such file or folder"):
        find_couples(b, str(tmp_path / "none"))
