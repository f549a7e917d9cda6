"""After a full flush, an access has the outcome that the guest's own tables give it.

The prediction is one walk of guest memory by the rules of the manuals, with no
shadow page in sight: the translation or the page fault, the value, and the A
and D bits left in the guest's tables.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab.kvm.state import Vcpu
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.machine.processor import guest_canonical, linear_address
from mmulab.x86.mode import PT_ACCESSED_MASK, PT_DIRTY_MASK
from mmulab.x86.paging import PROCESSOR, Paging, make_paging
from mmulab.x86.pferr import PF_VECTOR, PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_WP, X86_CR4_PSE, X86_CR4_SMAP
from mmulab.x86.walk import Walk, walk
from tests.kvm.guest import MODES
from tests.machine.random_guest import Layout, access_ops, layout_of, random_machine, register_ops, table_ops

Access = ops.Read | ops.Write | ops.Touch


class Expected(NamedTuple):
    """What the guest sees of an access: the fault's error code, a device, or the value read."""

    error_code: int | None
    device: bool = False
    value: int = 0


class Prediction:
    """Guest memory by GPA, through the memslots, with the expected writes on top."""

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory
        self._slots = machine.kvm.slots[machine.kvm.vcpus[0].smm]
        self._pages: dict[int, bytearray] = {}
        self._either: list[tuple[int, int]] = []

    def hpa(self, gpa: int, *, write: bool = False) -> int | None:
        """Return where `gpa` lies, None if it is a device or may not be written."""
        slot = self._slots.lookup(gpa >> 12)
        if slot is None or (write and slot.readonly):
            return None
        return slot.frame(gpa >> 12) << 12 | gpa & 0xFFF

    def _page(self, frame: int) -> bytearray:
        known = self._pages.get(frame)
        return bytearray(self._memory.bytes[frame << 12 : (frame + 1) << 12]) if known is None else known

    def read(self, gpa: int, size: int) -> int | None:
        hpa = self.hpa(gpa)
        if hpa is None:
            return None
        return int.from_bytes(self._page(hpa >> 12)[hpa & 0xFFF : (hpa & 0xFFF) + size], "little")

    def write(self, gpa: int, size: int, value: int) -> bool:
        hpa = self.hpa(gpa, write=True)
        if hpa is None:
            return False
        page = self._pages[hpa >> 12] = self._page(hpa >> 12)
        page[hpa & 0xFFF : (hpa & 0xFFF) + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return True

    def allow_dirty(self, gpa: int) -> None:
        """Accept the entry at `gpa` with D set or not."""
        hpa = self.hpa(gpa, write=True)
        if hpa is not None:
            self._pages[hpa >> 12] = self._page(hpa >> 12)
            self._either.append((hpa >> 12, hpa & 0xFFF))

    def wrong_frames(self, epoch: int) -> list[int]:
        """Return the guest's frames that are not as expected, among those written since `epoch`."""
        memory = self._memory
        for frame, offset in self._either:
            self._pages[frame][offset] |= memory.bytes[frame << 12 | offset] & PT_DIRTY_MASK
        first = memory.backing
        written = {first + int(i) for i in (memory.written[first:] >= epoch).nonzero()[0]}
        frames = sorted(written | self._pages.keys())
        return [f for f in frames if self._pages.get(f) != memory.bytes[f << 12 : (f + 1) << 12]]


def guest_paging(vcpu: Vcpu) -> Paging:
    return make_paging(vcpu.cr0, vcpu.cr4, vcpu.efer, vcpu.cpu, PROCESSOR)


def translate(vcpu: Vcpu, memory: Prediction, op: Access) -> Walk:
    """Walk the guest's tables, and set A and D if the access may go ahead."""
    paging = guest_paging(vcpu)
    width = paging.mode.entry_bytes
    write = isinstance(op, ops.Write)
    pfec = PFERR_USER_MASK if op.mode is Mode.USER else 0
    pfec |= (PFERR_WRITE_MASK if write else 0) | (PFERR_FETCH_MASK if isinstance(op, ops.Touch) else 0)
    pdptes = None
    if paging.mode.has_pdptes:
        base = vcpu.cr3 & paging.mode.root_mask
        pdptes = [memory.read(base + 8 * i, 8) or 0 for i in range(4)]

    def load(gpa: int, level: int) -> int | None:
        return memory.read(gpa, width)

    def store(gpa: int, entry: int) -> None:
        """Keep nothing: A is set below, once the walk is known to succeed (as KVM does)."""

    not_smap = op.mode is Mode.SUPERVISOR_AC
    va = linear_address(vcpu, op.gva)
    w = walk(paging, vcpu.cr3, va, pfec, load, store, pdptes=pdptes, not_smap=not_smap)
    levels = range(w.max_level, w.level - 1, -1) if paging.mode.root_level and w.error is None else ()
    for level in levels:
        bits = PT_ACCESSED_MASK | (PT_DIRTY_MASK if write and level == w.level else 0)
        memory.write(w.entry_addr[level], width, (memory.read(w.entry_addr[level], width) or 0) | bits)
    return w


def predict(vcpu: Vcpu, memory: Prediction, op: Access) -> Expected:
    """Give the access its effect on `memory` and return what the guest sees of it."""
    w = translate(vcpu, memory, op)
    if w.error is not None:
        return Expected(w.error)
    if isinstance(op, ops.Write):
        return Expected(None, not memory.write(w.pa, op.size, op.value))
    if isinstance(op, ops.Touch):
        return Expected(None, memory.hpa(w.pa) is None)
    value = memory.read(w.pa, op.size)
    if value is None and w.max_level:
        # At page 0, which the MMIO cache cannot hold, KVM unprotects and retries first, for
        # which it walks as for a write, and that sets D (retry_instruction, Linux 6.1 x86.c).
        memory.allow_dirty(w.entry_addr[w.level])
    return Expected(None, value is None, value or 0)


def seen(vcpu: Vcpu, op: Access, outcome: Outcome) -> Expected:
    if outcome.kind is OutcomeKind.EXC:
        assert (outcome.vector, outcome.cr2) == (PF_VECTOR, linear_address(vcpu, op.gva))
        assert outcome.error_code is not None
        return Expected(outcome.error_code)
    assert outcome.kind is OutcomeKind.OK
    device = outcome.mmio is not None
    return Expected(None, device, outcome.rax if isinstance(op, ops.Read) and not device else 0)


def comparable(vcpu: Vcpu, op: Access) -> bool:
    """Leave out where Linux 6.1 is known to differ from the architecture.

    - With WP=0, a read-only user page that the kernel wrote is a supervisor
      page for the processor, so SMAP does not see it.
    - Without PAE, KVM's walk reports a fetch by EFER.NX alone.
    - Roots always have the role of EFER.NX=1, so what was mapped by entries
      with NX stays mapped when the bit becomes reserved (``kvm_init_shadow_mmu``).
    - CR4.PSE is not in the role, so a 4 MiB page stays one when the bit is
      cleared and its entry becomes that of a table.

    And an address that is not canonical is no matter of tables.
    """
    paging = guest_paging(vcpu)
    wide = paging.mode.entry_bytes == 8 and paging.mode.root_level
    if not guest_canonical(vcpu, linear_address(vcpu, op.gva)):
        return False
    if not vcpu.cr0 & X86_CR0_WP and vcpu.cr4 & X86_CR4_SMAP:
        return False
    if isinstance(op, ops.Touch) and paging.nx and not wide:
        return False
    return bool(paging.nx if wide else vcpu.cr4 & X86_CR4_PSE or not paging.mode.root_level)


def compare(machine: Machine, op: Access) -> bool:
    """Flush, then hold the access against the prediction; False if it could not be."""
    vcpu = machine.kvm.vcpus[0]
    flush = machine.execute(ops.WriteCr(3, vcpu.cr3))
    if flush.kind is not OutcomeKind.OK or machine.execute(ops.Nop()).kind is not OutcomeKind.OK:
        return False
    if not comparable(vcpu, op):
        return False
    prediction = Prediction(machine)
    expected = predict(vcpu, prediction, op)
    machine.memory.epoch += 1
    outcome = machine.execute(op)
    if isinstance(op, ops.Touch) and (expected.device or outcome.mmio is not None):
        return False  # an instruction fetched from a device is not what a bare access stands for
    assert seen(vcpu, op, outcome) == expected
    assert prediction.wrong_frames(machine.memory.epoch) == []
    return True


def guest_ops(layout: Layout) -> st.SearchStrategy[list[Op]]:
    """Lists of what a guest does to itself."""
    zero = st.just(0)
    kinds = [*access_ops(layout, zero), *[table_ops(layout, zero)] * 2, *register_ops(layout, zero)]
    return st.lists(st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__), min_size=20, max_size=40)


@pytest.mark.parametrize("name", MODES)
def test_a_flushed_access_is_what_the_guests_tables_say(name: str) -> None:
    layout = layout_of(name)
    compared = 0

    @settings(max_examples=100, phases=[Phase.generate])
    @given(st.integers(0, 1 << 16), guest_ops(layout))
    def check(seed: int, listed: list[Op]) -> None:
        nonlocal compared
        machine = random_machine(seed, layout, vcpus=1)
        for op in listed:
            if isinstance(op, Access):
                compared += compare(machine, op)
            elif not isinstance(op, ops.HostWrite):
                machine.execute(op)

    check()
    assert compared > 100
