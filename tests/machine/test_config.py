"""The guest's CPUID, one feature changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.errors import InputError
from mmulab.machine.config import changed_cpu
from mmulab.x86.regs import CpuModel

CPU = CpuModel(maxphyaddr=40)


def test_one_feature_changes() -> None:
    assert changed_cpu(CPU, "maxphyaddr", 36) == replace(CPU, maxphyaddr=36)
    without = changed_cpu(CPU, "gbpages", 0)
    assert without == replace(CPU, gbpages=False)
    assert without.gbpages is False
    assert changed_cpu(without, "gbpages", 1) == CPU


@pytest.mark.parametrize(
    ("feature", "value", "says"),
    [
        ("rdrand", 1, "CPUID feature 'rdrand': the MMU knows maxphyaddr, gbpages, nx, "),
        ("vendor", 1, "CPUID feature 'vendor': the MMU knows "),
        ("smep", 2, "CPUID feature smep is 2, expected 0 or 1"),
        ("maxphyaddr", 53, "maxphyaddr is 35, expected 20 to 34"),
        ("maxphyaddr", 31, "maxphyaddr is 1f, expected 20 to 34"),
    ],
)
def test_what_cannot_be_is_refused(feature: str, value: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        changed_cpu(CPU, feature, value)
