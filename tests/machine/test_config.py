"""The guest's CPUID, one feature changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.errors import InputError
from mmulab.machine.config import MachineConfig, changed_cpu
from mmulab.machine.machine import Machine
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


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cpuid_after_run", "cpuid_after_run is 'maybe', expected one of refuse, allow, bug"),
        ("free_roots_lock", "free_roots_lock is 'maybe', expected one of write, by_root_role"),
    ],
)
def test_a_rule_that_kvm_has_not_is_refused(name: str, says: str) -> None:
    config = replace(MachineConfig(backing_bytes=1 << 20, table_frames=16), **{name: "maybe"})
    with pytest.raises(InputError, match=says):
        Machine(config)
