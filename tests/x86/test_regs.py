"""Bit masks."""

from __future__ import annotations

import pytest

from mmulab.x86.regs import rsvd_bits


@pytest.mark.parametrize(
    ("low", "high", "mask"),
    [(0, 0, 1), (1, 2, 6), (63, 63, 1 << 63), (0, 63, (1 << 64) - 1), (52, 51, 0), (40, 51, 0xFFF << 40)],
)
def test_rsvd_bits_has_exactly_the_bits_from_low_to_high(low: int, high: int, mask: int) -> None:
    assert rsvd_bits(low, high) == mask
