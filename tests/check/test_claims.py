"""Each claim of the table of features broken by one line: the recordings that it names differ then.

The lines are in :mod:`tests.check.claims`. That the recordings agree as long as nothing is
changed is tested here too, so that they fail for the line alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmulab.check.features import CONFORMANT, features
from mmulab.conform.compare import Level, compare
from mmulab.conform.recording import read_recording
from tests.check.changed_line import changed_code, function_at
from tests.check.claims import CLAIMS, NOT_BROKEN, Claim
from tests.check.test_features import path_of

ROWS = {row.id: row for row in features()}


def agrees(claim: Claim) -> list[bool]:
    """Whether each recording of a claim agrees with the model as it is now."""
    paths = [path_of(claim.kernel, name) for name in claim.recordings]
    return [compare(read_recording(path), Level.FULL).agrees for path in paths if path is not None]


def forget() -> None:
    """Forget what functions of the package remember of earlier calls."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mmulab"):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()


@contextmanager
def broken(claim: Claim) -> Iterator[None]:
    """Change the claim's line for a while."""
    function = function_at(claim.function)
    right = function.__code__
    function.__code__ = changed_code(claim.function, claim.old, claim.new)
    forget()
    try:
        yield
    finally:
        function.__code__ = right
        forget()


def test_every_conformant_row_has_a_line_or_says_why_not() -> None:
    wanted = {row.id for row in features() if CONFORMANT in row.states.values()}
    named = {claim.row for claim in CLAIMS}
    assert named | set(NOT_BROKEN) == wanted
    assert not named & set(NOT_BROKEN)
    assert len(set(CLAIMS)) == len(CLAIMS)


def test_a_claim_names_recordings_of_its_row() -> None:
    for claim in CLAIMS:
        assert claim.recordings, claim
        assert ROWS[claim.row].states[claim.kernel] == CONFORMANT, claim
        for name in claim.recordings:
            assert name in ROWS[claim.row].evidence, claim
            assert path_of(claim.kernel, name), claim


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.row}-{claim.function}={claim.new}"[:80])
def test_a_line_that_can_be_changed_stands_once(claim: Claim) -> None:
    assert changed_code(claim.function, claim.old, claim.new)


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.row}-{claim.function}={claim.new}"[:80])
def test_a_broken_claim_shows_in_its_recordings(claim: Claim) -> None:
    assert all(agrees(claim))
    with broken(claim):
        assert not any(agrees(claim))
