"""Where the checkout keeps its things."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab import paths
from mmulab.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def test_checkout() -> None:
    assert paths.checkout() == ROOT


def test_package_without_its_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "mmulab" / "lab" / "paths.py"))
    with pytest.raises(InputError, match="no folder 'notebooks' beside the package; clone"):
        paths.checkout()


def test_missing_data_is_named() -> None:
    with pytest.raises(InputError, match="nothing-of-that-name: no such file in the project's data"):
        paths.data("nothing-of-that-name")


def test_unknown_notebook_names_the_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("notebooks/b.ipynb", "notebooks/a.ipynb", "data/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    assert paths.notebook("a") == tmp_path / "notebooks" / "a.ipynb"
    with pytest.raises(InputError, match="notebook 'c': unknown; the project has a, b"):
        paths.notebook("c")


def test_newcomers_notebook_is_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    for name in ("b", "real_boot", "a"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    assert [path.stem for path in paths.notebooks()] == ["real_boot", "a", "b"]
