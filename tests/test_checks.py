"""A check says what was found, or what to do; a bug is not swallowed."""

from __future__ import annotations

import pytest

from mmulab.checks import Check, checked
from mmulab.errors import InputError


def test_what_is_there_and_what_lacks() -> None:
    def lacks() -> str:
        raise InputError("install it")

    assert checked("a", lambda: "here") == Check("a", True, "here", True)
    assert checked("b", lacks, needed=False) == Check("b", False, "install it", False)


def test_a_bug_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        checked("c", lambda: str(1 // 0))
