"""SMEP and SMAP act on a guest that pages, as soon as the vendor's module has loaded CR4 again."""

from __future__ import annotations

import pytest

from mmulab.kvm.smm import enter_smm
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.scenario import MODES
from mmulab.x86.regs import X86_CR0_PG, X86_CR4_PGE, X86_CR4_SMAP, X86_CR4_SMEP
from tests.kvm.guest import Guest, cr4
from tests.scenario.texts import ran

GVA = 0x40000000
PAGING, FLAT = MODES["32"].cr0, MODES["32"].cr0 & ~X86_CR0_PG


def _reads(host: str, *ops: str) -> list[OutcomeKind]:
    """Run ops in a guest that has a user page mapped, and return how its supervisor's reads of it end."""
    entries = "m4 10400 20067\nm4 20000 100067"
    header = f"host {host}\nmode 32\nsregs {FLAT:x} 10000 10 0\nroot 10000\nalloc 20000\n{entries}"
    results = ran(f"{header}\nops\n" + "\n".join(ops))
    return [r.outcome.kind for r in results if r.text.startswith("rd s")]


MAP, READ = f"rd u 4 {GVA:x}", f"rd s 4 {GVA:x}"
"""KVM's own walk knows CR4, so only a page that is mapped already shows what the processor knows."""
SMAP, SMAP_AND_PGE = X86_CR4_SMAP | 0x10, X86_CR4_SMAP | X86_CR4_PGE | 0x10


@pytest.mark.parametrize(("host", "at_once"), [("amd", True), ("intel", False)])
def test_smap_set_before_paging(host: str, at_once: bool) -> None:
    """``vmx_set_cr0`` does not load CR4 again without EPT, ``svm_set_cr0`` does."""
    begin = (f"cr4 {SMAP:x}", f"cr0 {PAGING:x}", MAP, READ)
    fault, ok = OutcomeKind.EXC, OutcomeKind.OK
    assert _reads(host, *begin) == [fault if at_once else ok]
    # A load of the same value does not exit on Intel, one of another does.
    again = _reads(host, *begin, f"cr4 {SMAP:x}", READ, f"cr4 {SMAP_AND_PGE:x}", READ)
    assert again == ([fault] * 3 if at_once else [ok, ok, fault])


@pytest.mark.parametrize("host", ["amd", "intel"])
def test_the_vmm_loads_both_at_once(host: str) -> None:
    """``__set_sregs_common``: CR0 first, then CR4 in any case."""
    assert _reads(host, f"sregs {PAGING:x} 10000 {SMAP:x} 0", MAP, READ) == [OutcomeKind.EXC]


def test_smm_begins_without() -> None:
    guest = Guest("64", on=cr4(X86_CR4_SMEP))
    assert guest.vcpu.hw_cr4 == X86_CR4_SMEP
    enter_smm(guest.vcpu)
    assert (guest.vcpu.cr4, guest.vcpu.hw_cr4) == (0, 0)
