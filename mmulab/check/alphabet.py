"""What may happen to a small guest: short phrases of ops, drawn at random.

A change is worth little without an access that meets it. So a phrase that writes an entry
goes on with accesses of addresses below it, and what was touched lately is touched again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from mmulab.check.area import Area, Entry, link_flags
from mmulab.check.control_block import VMCB_TLB_CONTROL, ept_pointer
from mmulab.check.entries import backing_ranges, entry_value
from mmulab.check.guest import CONTROL_BLOCKS, MMIO, PAGES, SLOT_PAGES, SMM, Plan, Slot
from mmulab.check.paging_switch import switch_ops
from mmulab.kvm.svm.nested import INTERCEPT_EXCEPTION, SVM_EXITS, VMCB
from mmulab.kvm.vmx.vmcs12 import VMCS12
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.scenario.grammar import Step
from mmulab.scenario.scenario import Regs
from mmulab.scenario.tables import PAGE, mode_of
from mmulab.x86.mode import NONPAGING
from mmulab.x86.pferr import PF_VECTOR
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR3_PCID_NOFLUSH,
    X86_CR4_LA57,
    X86_CR4_PCIDE,
    X86_CR4_PGE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    X86_CR4_VMXE,
)

MARK = 0x55AA5590
MODES = (Mode.SUPERVISOR, Mode.SUPERVISOR, Mode.SUPERVISOR, Mode.USER, Mode.USER, Mode.SUPERVISOR_AC)
ACROSS = 0.04
"""Share of accesses that cross into the next page."""
LEAST_PAGES = 64
"""``KVM_SET_NR_MMU_PAGES`` takes no fewer."""
NEAR = 0.3
"""Share of new values of an entry that are the old one with another bit."""
NEAR_BITS = (1, 1, 2, 5, 6, 7, 7, 8)
"""W, U, A, D, PS and G, or what EPT has there."""
_CR4 = (X86_CR4_SMEP, X86_CR4_SMAP, X86_CR4_PGE, X86_CR4_PSE)
_PCIDS = (0, 0, 1, 2)
Phrase = list[Step]


class Alphabet:
    """Draws phrases for one guest.

    Parameters
    ----------
    plan : Plan
    rng : random.Random
        The only source of chance.
    """

    def __init__(self, plan: Plan, rng: Random) -> None:
        self.plan, self.rng = plan, rng
        self._nested = bool(plan.guest.l2)
        self._recent: dict[str, deque[int]] = {}
        self._ranges = backing_ranges(plan)
        self._held = {value.gpa: value.value for value in plan.scenario.header.values}
        self._areas = [area for area in plan.areas for _ in range(2 if area.name == "nested" else 1)]
        phrases: list[tuple[Callable[[], Phrase], int]] = [
            (self.touch, 30),
            (self.change, 30 if plan.areas else 0),
            (self.relink, 8 if plan.areas else 0),
            (self.registers, 12),
            (self.switch, 8 if plan.areas else 0),
            (self.flush, 4),
            (self.slots, 6),
            (self.host, 6),
            (self.dirty_log, 4),
            (self.smm, 6 if plan.guest.smm else 0),
            (self.world, 10 if self._nested else 0),
            (self.la57, 8 if plan.guest.mode == "57" else 0),
            (self.paging, 14 if plan.modes else 0),
        ]
        self._phrases = [phrase for phrase, _ in phrases]
        self._weights = [weight for _, weight in phrases]

    def phrase(self) -> Phrase:
        """Draw a phrase."""
        draw = self.rng.choices(self._phrases, self._weights)[0]
        return draw()

    # Accesses -------------------------------------------------------------------

    def touch(self) -> Phrase:
        """One to three accesses, mostly where something was lately."""
        area = self.rng.choice(self.plan.areas) if self.plan.areas else None
        return self._accesses(area, self.rng.randint(1, 3))

    def _accesses(self, area: Area | None, count: int, addresses: tuple[int, ...] = ()) -> Phrase:
        """Access addresses of an area, in the world that it is of."""
        inside = area is not None and area.name != "L1"
        if self._nested and area is not None and area.name == "L1" and self.rng.random() < 0.4:
            inside = not self.plan.guest.nested_paging  # L2 may page with L1's own tables
        vcpu = self._vcpu()
        steps = self._enter(vcpu) if inside else self._leave(vcpu)
        when = "" if not self._nested else "!" if inside else "?"
        for _ in range(count):
            steps.append(Step(self._access(self._address(area, addresses), vcpu), when))
        return steps

    def _address(self, area: Area | None, addresses: tuple[int, ...]) -> int:
        rng = self.rng
        if area is None:
            return rng.choice((*PAGES, *SLOT_PAGES, MMIO))
        if area.name == "nested" and not (addresses and self.rng.random() < 0.3):
            paging = [other for other in self.plan.areas if other.name == "L2"]
            if paging and rng.random() < 0.7:
                area, addresses = rng.choice(paging), ()
        recent = self._recent.setdefault(area.name + area.mode.name, deque(maxlen=6))
        if addresses and rng.random() < 0.8:
            address = rng.choice(addresses)
        elif recent and rng.random() < 0.5:
            address = rng.choice(recent)
        else:
            address = rng.choice(area.addresses)
        recent.append(address)
        return address

    def _access(self, address: int, vcpu: int) -> Op:
        mode, rng = self.rng.choice(MODES), self.rng
        kind = rng.random()
        if rng.random() < ACROSS:
            address |= 0xFFE  # the other half lies on the next page
        if kind < 0.5:
            return ops.Read(mode, 4, address, vcpu=vcpu)
        if kind < 0.85:
            return ops.Write(mode, 4, address | (0 if address & 0xFFF else 8), MARK, vcpu=vcpu)
        if kind < 0.95:
            return ops.Execute(mode, address & ~0xFFF | 0x800, vcpu=vcpu)
        return ops.Exchange(mode, 4, address & ~0xFFF | 8, MARK, vcpu=vcpu)

    def _vcpu(self) -> int:
        return self.rng.randrange(self.plan.guest.vcpus)

    def _enter(self, vcpu: int) -> Phrase:
        block = CONTROL_BLOCKS[self.rng.randrange(len(self.plan.guest.l2))]
        return [Step(ops.Vmrun(block, vcpu=vcpu), "?")]

    def _leave(self, vcpu: int) -> Phrase:
        if not self._nested:
            return []
        leave = ops.Vmcall if self.plan.guest.vendor == "intel" else ops.Vmmcall
        return [Step(leave(vcpu=vcpu), "!")]

    # Tables ---------------------------------------------------------------------

    def change(self) -> Phrase:
        """Write an entry, perhaps flush, and look below it; perhaps look before as well."""
        return self._change(self.rng.choice(self._areas))

    def _change(self, area: Area) -> Phrase:
        rng = self.rng
        entry = rng.choice(area.entries)
        before = self._accesses(area, 1, entry.addresses) if rng.random() < 0.5 else []
        steps = [*before, *self._store(area, entry, self._value(area, entry))]
        if rng.random() < 0.4:
            steps += self._flush_for(area, entry)
        return [*steps, *self._accesses(area, rng.randint(1, 3), entry.addresses)]

    def _value(self, area: Area, entry: Entry) -> int:
        """Draw a value for an entry; often the last one with one bit of it changed."""
        held = self._held.get(entry.gpa, 0)
        if held and self.rng.random() < NEAR:
            bits = (*NEAR_BITS, 63) if area.mode.entry_bytes == 8 else NEAR_BITS
            return held ^ 1 << self.rng.choice(bits)
        return entry_value(self.rng, self.plan, area, entry)

    def _store(self, area: Area, entry: Entry, value: int) -> Phrase:
        rng, size = self.rng, area.mode.entry_bytes
        self._held[entry.gpa] = value
        vcpu = self._vcpu()
        if rng.random() < 0.2:
            return [Step(ops.HostWrite(size, entry.gpa, value))]
        inside = area.name == "L2" and rng.random() < 0.5
        steps = self._enter(vcpu) if inside else self._leave(vcpu)
        when = "" if not self._nested else "!" if inside else "?"
        regs = self.plan.l2_regs if inside else (self.plan.regs, *self.plan.modes)
        if size == 8 and not all(mode.efer & EFER_LMA for mode in regs):
            halves = [(entry.gpa + 4, value >> 32), (entry.gpa, value & 0xFFFFFFFF)]
            stores: list[Op] = [ops.Write(Mode.SUPERVISOR, 4, at, half, vcpu=vcpu) for at, half in halves]
            stores = stores if value >> 32 else stores[1:]
        elif rng.random() < 0.05:
            stores = [ops.Exchange(Mode.SUPERVISOR, size, entry.gpa, value, vcpu=vcpu)]
        else:
            stores = [ops.Write(Mode.SUPERVISOR, size, entry.gpa, value, vcpu=vcpu)]
        return [*steps, *(Step(store, when) for store in stores)]

    def relink(self) -> Phrase:
        """Change an entry, reach its table by another entry of the level above, and look there."""
        rng = self.rng
        area = rng.choice(self._areas)
        lower = rng.choice([entry for entry in area.entries if entry.level < area.mode.root_level])
        upper = rng.choice([entry for entry in area.entries if entry.level == lower.level + 1])
        table = lower.gpa & -PAGE
        shift, index = area.mode.level_shift(lower.level), (lower.gpa & PAGE - 1) // area.mode.entry_bytes
        span = (1 << area.mode.level_shift(upper.level)) - 1
        address = (rng.choice(upper.addresses or area.addresses) & ~span) | index << shift
        steps = self._store(area, upper, 0) if rng.random() < 0.5 else []
        steps += self._accesses(area, 1, lower.addresses)
        steps += self._store(area, lower, self._value(area, lower))
        steps += self._store(area, upper, table | link_flags(area.mode, upper.level, area.ept))
        if rng.random() < 0.6:
            steps += self._flush_for(area, Entry(upper.gpa, upper.level, (address,)))
        return [*steps, *self._accesses(area, rng.randint(1, 2), (address,))]

    def _flush_for(self, area: Area, entry: Entry) -> Phrase:
        vcpu, when = self._vcpu(), "?" if self._nested else ""
        if area.name == "nested":
            return self._nested_flush(vcpu)
        if area.name == "L2":
            when = "!"
        if entry.addresses and self.rng.random() < 0.7:
            return [Step(ops.Invlpg(self.rng.choice(entry.addresses), vcpu=vcpu), when)]
        return [Step(ops.WriteCr(3, self._cr3(area), vcpu=vcpu), when)]

    def _cr3(self, area: Area) -> int:
        root = self.rng.choice(area.roots)
        if not self.plan.guest.cpu.get("pcid"):
            return root
        return root | self.rng.choice(_PCIDS) | self.rng.choice((0, 0, X86_CR3_PCID_NOFLUSH))

    def flush(self) -> Phrase:
        """Flush something, for no reason."""
        vcpu = self._vcpu()
        if not self.plan.areas:
            return [Step(ops.Nop(vcpu=vcpu))]
        if self._nested and self.rng.random() < 0.4:
            return self._nested_flush(vcpu)
        area = self.rng.choice(self.plan.areas)
        address = self.rng.choice(area.addresses)
        if self.plan.guest.cpu.get("invpcid") and self.rng.random() < 0.5:
            return [Step(ops.Invpcid(self.rng.randrange(4), self.rng.choice(_PCIDS), address, vcpu=vcpu))]
        return [Step(ops.Invlpg(address, vcpu=vcpu))]

    def _nested_flush(self, vcpu: int) -> Phrase:
        """What L1 does so that L2 forgets."""
        if self.plan.guest.vendor == "intel":
            nested = self.plan.area("nested")
            root = ept_pointer(nested.roots[0], ad=self._ept_ad()) if nested else 0
            invept = ops.Invept(self.rng.choice((1, 2)), root, vcpu=vcpu)
            address = self.rng.choice(self.plan.areas[-1].addresses)
            invvpid = ops.Invvpid(self.rng.randrange(4), 1, address, vcpu=vcpu)
            return [Step(invept if nested and self.rng.random() < 0.7 else invvpid, "?")]
        block = CONTROL_BLOCKS[self.rng.randrange(len(self.plan.guest.l2))]
        at, value = (VMCB_TLB_CONTROL, self.rng.choice((0, 1, 3)))
        if self.rng.random() < 0.4:
            at, value = VMCB["asid"][0], self.rng.choice((1, 2))
        return [Step(ops.Write(Mode.SUPERVISOR, 4, block + at, value, vcpu=vcpu), "?")]

    def _ept_ad(self) -> bool:
        return bool(self.plan.guest.host.get("eptad", 1))

    # Registers ------------------------------------------------------------------

    def registers(self) -> Phrase:
        """Change the rules, look, and perhaps change them back and look again."""
        rng = self.rng
        inside = self._nested and rng.random() < 0.5
        vcpu = self._vcpu()
        regs = rng.choice(self.plan.l2_regs) if inside else self.plan.regs
        when = "" if not self._nested else "!" if inside else "?"
        back, there = self._rule(regs, vcpu)
        areas = [a for a in self.plan.areas if (a.name != "L1") == inside]
        area = rng.choice(areas) if areas else self.plan.areas[0] if self.plan.areas else None
        steps = self._enter(vcpu) if inside else self._leave(vcpu)
        steps += self._accesses(area, 1) if rng.random() < 0.5 else []
        steps += [Step(there, when), *self._accesses(area, rng.randint(1, 2))]
        if rng.random() < 0.6:
            steps += [Step(back, when), *self._accesses(area, rng.randint(1, 2))]
        return steps

    def _rule(self, regs: Regs, vcpu: int) -> tuple[Op, Op]:
        """Return the op that sets a register as it is at first, and one that sets it otherwise."""
        rng, long_mode = self.rng, bool(regs.efer & EFER_LMA)
        choice = rng.random()
        if choice < 0.45 or mode_of(regs) is NONPAGING:
            bit = X86_CR0_WP if rng.random() < 0.8 else X86_CR0_PG
            compat = bit == X86_CR0_PG and long_mode
            return (
                ops.WriteCr(0, regs.cr0, vcpu=vcpu),
                ops.WriteCr(0, regs.cr0 & ~bit, compat=compat, vcpu=vcpu),
            )
        if choice < 0.9:
            bits = (*_CR4, X86_CR4_PCIDE) if self.plan.guest.cpu.get("pcid") and long_mode else _CR4
            return ops.WriteCr(4, regs.cr4, vcpu=vcpu), ops.WriteCr(4, regs.cr4 ^ rng.choice(bits), vcpu=vcpu)
        efer = regs.efer & ~EFER_LMA
        return ops.WriteEfer(efer, vcpu=vcpu), ops.WriteEfer(efer ^ EFER_NX, vcpu=vcpu)

    def switch(self) -> Phrase:
        """Go to another root and back, and look at both."""
        area = self.rng.choice([a for a in self.plan.areas if a.name != "nested"] or list(self.plan.areas))
        if area.name == "nested":
            return self.world()
        vcpu, when = self._vcpu(), "" if not self._nested else "!" if area.name == "L2" else "?"
        steps = self._accesses(area, 1)
        for root in (area.roots[1], area.roots[0]):
            steps += [Step(ops.WriteCr(3, root, vcpu=vcpu), when), *self._accesses(area, 1)]
        return steps

    def la57(self) -> Phrase:
        """Change the guest from 5-level to 4-level paging or back, by way of paging off (SDM 3, 4.1.2)."""
        own, vcpu = self.plan.areas[0], self._vcpu()
        regs, when = self.plan.regs, "?" if self._nested else ""
        five = self.rng.random() < 0.5
        cr4, cr3 = (regs.cr4, own.roots[0]) if five else (regs.cr4 & ~X86_CR4_LA57, own.fixed[0])
        registers = (
            ops.WriteCr(0, regs.cr0 & ~X86_CR0_PG, compat=True, vcpu=vcpu),
            ops.WriteCr(4, cr4, vcpu=vcpu),
            ops.WriteCr(3, cr3, vcpu=vcpu),
            ops.WriteCr(0, regs.cr0, vcpu=vcpu),
        )
        area = self.rng.choice(self.plan.areas)
        steps = [*self._accesses(area, 1), *self._leave(vcpu), *(Step(op, when) for op in registers)]
        return [*steps, *self._accesses(area, self.rng.randint(1, 2))]

    def paging(self) -> Phrase:
        """Let L1, or L2, page in another way, look and change a table there; mostly come back, and look."""
        rng, vcpu = self.rng, self._vcpu()
        inside = self._nested and rng.random() < 0.5
        if inside:
            own, *others = self.plan.l2_regs
            steps, when = self._enter(vcpu), "!"
        else:
            own, others = self.plan.regs, list(self.plan.modes)
            steps, when = self._leave(vcpu), "?" if self._nested else ""
        other = rng.choice([own, *others])
        efer = not inside or self.plan.guest.vendor == "amd"  # without a bitmap of MSRs L1 gets each write
        there, back = self._areas_of(other, inside=inside), self._areas_of(own, inside=inside)
        steps += self._accesses(rng.choice(back), 1)
        block = rng.choice(CONTROL_BLOCKS[: len(self.plan.l2_regs)] or CONTROL_BLOCKS)
        for regs, areas in ((other, there), (own, back)) if rng.random() < 0.8 else ((other, there),):
            steps += [Step(op, when) for op in switch_ops(rng, regs, vcpu, efer=efer)]
            steps += [] if inside else self._nested_root(block, regs, vcpu)
            steps += self._change(rng.choice(areas)) if rng.random() < 0.5 else []
            steps += self._accesses(rng.choice(areas), rng.randint(1, 2))
        return steps

    def _areas_of(self, regs: Regs, *, inside: bool) -> list[Area]:
        """Return the areas of L1, or L2, in a way of paging; all where it has none."""
        mode, outer = mode_of(regs), "nested" if inside else "L2"
        found = [area for area in self.plan.areas if area.mode is mode and area.name not in (outer, "nested")]
        return found or list(self.plan.areas)

    def _nested_root(self, block: int, regs: Regs, vcpu: int) -> Phrase:
        """Give L2 nested tables of the form that L1's own have (APM 2, 15.25.3), and let it look."""
        mode, inner = mode_of(regs), [area for area in self.plan.areas if area.name == "L2"]
        found = [a for a in self.plan.areas if a.name == "nested" and a.mode is mode and not a.ept]
        if not found:
            return []
        at, root = block + VMCB["nested_cr3"][0], self.rng.choice(found[0].roots)
        steps = [Step(ops.Write(Mode.SUPERVISOR, 4, at, root, vcpu=vcpu), "?")]
        steps.append(Step(ops.Vmrun(block, vcpu=vcpu), "?"))
        return steps + [step for area in inner[:1] for step in self._accesses(area, 1)]

    def world(self) -> Phrase:
        """Enter L2 or leave it; sometimes L1 changes what L2 will be."""
        rng, vcpu = self.rng, self._vcpu()
        block = rng.randrange(len(self.plan.guest.l2))
        steps: Phrase = []
        if rng.random() < 0.4:
            steps = [*self._leave(vcpu), *self._control(block, vcpu)]
        return [*steps, *self._leave(vcpu), Step(ops.Vmrun(CONTROL_BLOCKS[block], vcpu=vcpu), "?")]

    def _control(self, block: int, vcpu: int) -> Phrase:
        """Write a field of a control block: the nested root, a register of L2, or what L1 intercepts."""
        guest, regs = self.plan.guest, self.plan.l2_regs[block]
        name, value = self._field(regs)
        if guest.vendor == "intel":
            value = value | X86_CR4_VMXE if name == "cr4" else value
            field = "ept_pointer" if name == "nested_cr3" else f"guest_{name}"
            return [Step(ops.Vmwrite(VMCS12[field].encoding, value, vcpu=vcpu), "?")]
        at = CONTROL_BLOCKS[block] + VMCB[name][0]
        if self.rng.random() < 0.1:
            word, bit = divmod(SVM_EXITS["shutdown"], 32)
            if self.rng.random() < 0.5 and not guest.host.get("npt"):
                word, bit = INTERCEPT_EXCEPTION, PF_VECTOR
            at, value = CONTROL_BLOCKS[block] + 4 * word, 1 << bit
        return [Step(ops.Write(Mode.SUPERVISOR, 4, at, value, vcpu=vcpu), "?")]

    def _field(self, regs: Regs) -> tuple[str, int]:
        """Draw a field, by its name in a VMCB, and a value; seldom a root where no memory is."""
        rng, nested = self.rng, self.plan.area("nested")
        outside = rng.random() < 0.1
        if nested is not None and rng.random() < 0.6:
            root = MMIO if outside else rng.choice(nested.roots)
            amd = self.plan.guest.vendor == "amd"
            return "nested_cr3", root if amd else ept_pointer(root, ad=self._ept_ad())
        if rng.random() < 0.3:
            return "cr4", regs.cr4 ^ rng.choice((0, 0, X86_CR4_PCIDE, *_CR4))
        own = [a for a in self.plan.areas if a.mode is mode_of(regs) and a.name != "nested"]
        root = MMIO if outside else rng.choice(own[0].roots) if own else 0
        return "cr3", root | rng.choice((0, 0, 0, 1))

    # The host -------------------------------------------------------------------

    def slots(self) -> Phrase:
        """Delete, make, move a slot or change its flags, and look."""
        rng = self.rng
        slot = rng.choice(self.plan.slots)
        flags = rng.choice((0, 0, 0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY))
        choice = rng.random()
        if choice < 0.35:
            op: Op = ops.DeleteMemslot(slot.id)
        elif choice < 0.85:
            op = ops.SetMemslot(slot.id, slot.gpa, slot.size, flags, slot.offset)
        elif choice < 0.93:
            op = ops.SetMemslot(slot.id, slot.gpa + 0x200000, slot.size, flags, slot.offset)
        else:
            other = rng.choice(self.plan.slots)
            op = ops.SetMemslot(slot.id, slot.gpa, slot.size, flags, other.offset)
        return [Step(op), *self.touch()]

    def host(self) -> Phrase:
        """Something that the host does with the VMM's memory or KVM's pages, and a look."""
        rng, large = self.rng, self.plan.guest.large
        offset, length = rng.choice(self._ranges)
        drawn: list[list[Op]] = [
            [ops.InvalidateHva(offset, length)],
            [ops.Age(offset, length)],
            [ops.SetNrMmuPages(rng.choice((LEAST_PAGES, LEAST_PAGES, 1000)))],
            [ops.RecoverNxHugePages(1)],
            [ops.SetNxHugePages(rng.random() < 0.5)],
        ]
        if large:
            drawn += [[ops.Collapse(offset, length)]]
        else:
            drawn += [[ops.SwapOut(offset, length)], [ops.Protect(offset, length, 1)]]
            drawn += [[ops.Protect(offset, length, 3)], [ops.Protect(offset, length, 0)]]
        return [*(Step(op) for op in rng.choice(drawn)), *self.touch()]

    def dirty_log(self) -> Phrase:
        """Turn logging on or read a log, after writes."""
        rng = self.rng
        slot = rng.choice(self.plan.slots)
        if slot.id & SMM or rng.random() < 0.4:
            op: Op = ops.SetMemslot(slot.id, slot.gpa, slot.size, KVM_MEM_LOG_DIRTY_PAGES, slot.offset)
            return [Step(op), *self.touch(), *self._read_log(slot), *self.touch()]
        return [*self.touch(), *self._read_log(slot)]

    def _read_log(self, slot: Slot) -> Phrase:
        """Read what is dirty, and let it count as clean again where that takes another call."""
        if self.plan.guest.dirty_ring:
            return [Step(ops.GetDirtyRing(vcpu=self._vcpu())), Step(ops.ResetDirtyRings())]
        read = [Step(ops.GetDirtyLog(slot.id))]
        if not self.plan.guest.manual_dirty:
            return read
        return [*read, *self.touch(), Step(ops.ClearDirtyLog(slot.id, 0, slot.size // PAGE))]

    def smm(self) -> Phrase:
        """Go to system management mode, turn paging on there, look, come back and look."""
        rng, vcpu, regs = self.rng, self._vcpu(), self.plan.regs
        steps = [Step(ops.Smm(True, vcpu=vcpu))]
        if rng.random() < 0.7 and regs.cr0 & X86_CR0_PG:
            # Its handler begins with CR4 and EFER of 0, and with the interrupted CR3.
            cr3 = rng.choice(self.plan.areas[0].roots)
            on: list[Op] = [ops.WriteCr(4, regs.cr4, vcpu=vcpu), ops.WriteCr(3, cr3, vcpu=vcpu)]
            on += [ops.WriteEfer(regs.efer & ~EFER_LMA, vcpu=vcpu)] if regs.efer else []
            steps += [Step(op) for op in (*on, ops.WriteCr(0, regs.cr0, vcpu=vcpu))]
        steps += rng.choice((self.touch, self.touch, self.slots, self.change))()
        if rng.random() < 0.8:
            steps += [Step(ops.Smm(False, vcpu=vcpu)), *rng.choice((self.touch, self.change))()]
        return steps
