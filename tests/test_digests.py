"""SHA-256 of files and folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mmulab.digests import digest, tree
from mmulab.errors import InputError


def test_digest_sees_a_file_change(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert digest(path) == hashlib.sha256(content).hexdigest()


def test_digest_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such file"):
        digest(tmp_path / "none")


def test_tree_is_of_names_and_contents_but_compiled_and_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    found = {tree(tmp_path)}
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").touch()
    (tmp_path / ".hidden").touch()
    assert {tree(tmp_path)} == found
    (tmp_path / "a").rename(tmp_path / "b")
    found.add(tree(tmp_path))
    (tmp_path / "b").write_text("23")
    found.add(tree(tmp_path))
    assert len(found) == 3
