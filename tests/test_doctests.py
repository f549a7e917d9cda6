"""Every example in a docstring, in the README and in the manual prints what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "mmulab").rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text("utf-8"), re.M)
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "mmulab" / "doc").glob("*.md"))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_of_a_module(path: Path) -> None:
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_readme_begins_with_a_session_that_goes_wrong() -> None:
    (block,) = [part for part in PAGES[0].read_text("utf-8").split("```") if part.startswith("pycon\n")]
    assert block.count(">>> ") <= 10
    assert "D7" in block


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_of_a_page(path: Path) -> None:
    text = path.read_text("utf-8")
    failed, tried = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert tried == text.count("\n>>> ")
    assert not failed
