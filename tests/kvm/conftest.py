"""Small guests for the tests of the MMU."""

from __future__ import annotations

import pytest

from tests.kvm.guest import DATA, GVA, PAGED, Guest


@pytest.fixture
def guest() -> Guest:
    """A 4-level guest with one writable page at :data:`GVA`."""
    return Guest("64").map(GVA, DATA)


@pytest.fixture(params=PAGED)
def paged(request: pytest.FixtureRequest) -> Guest:
    """The same guest in each paging mode."""
    return Guest(request.param).map(GVA, DATA)
