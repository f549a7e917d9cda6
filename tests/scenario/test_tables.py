"""Page tables in a scenario's memory, walked as the processor would."""

from __future__ import annotations

from itertools import count

import pytest

from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import MODES
from mmulab.scenario.tables import PAGE, EptTables, Tables, mode_of
from mmulab.x86.ept import EPT_4LEVEL, make_ept_paging
from mmulab.x86.paging import KVM_WALK, Paging, make_paging
from mmulab.x86.pferr import PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import CpuModel
from mmulab.x86.walk import Walk, walk

ROOT, FREE, GVA, TARGET = 0x10000, 0x20000, 0x40201000, 0x80000
ALL = PFERR_USER_MASK | PFERR_WRITE_MASK


def walked(tables: Tables, paging: Paging, address: int) -> Walk:
    held = {value.gpa: value.value for value in tables.builder.build().header.values}
    return walk(paging, ROOT, address, ALL, lambda at, level: held.get(at, 0))


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_the_processor_walks_what_was_mapped(mode: str) -> None:
    regs, builder = MODES[mode], ScenarioBuilder(mode)
    tables = Tables(builder, mode_of(regs), ROOT, count(FREE, PAGE))
    tables.map(GVA, TARGET)
    tables.identity(TARGET)
    beside = tables.put(GVA + PAGE, 0)
    assert beside == tables.entry(GVA) + tables.mode.entry_bytes
    paging = make_paging(regs.cr0, regs.cr4, regs.efer, CpuModel(), KVM_WALK)
    assert walked(tables, paging, GVA | 0x123).pa == TARGET | 0x123
    assert walked(tables, paging, TARGET).pa == TARGET
    assert walked(tables, paging, GVA + PAGE).error is not None
    assert tables.pages[0] == ROOT
    assert len(tables.pages) == len(set(tables.pages))
    assert tables.step(2) == PAGE << (10 if mode == "32" else 9)


def test_ept_has_its_own_bits() -> None:
    tables = EptTables(ScenarioBuilder("64"), EPT_4LEVEL, ROOT, count(FREE, PAGE))
    tables.map(GVA, TARGET)
    paging = make_ept_paging(4, ad=False, cpu=CpuModel(), walker=KVM_WALK)
    found = walked(tables, paging, GVA)
    assert (found.error, found.pa) == (None, TARGET)
