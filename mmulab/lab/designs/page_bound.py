"""How many upper-level shadow pages one gfn can have at most, by counting role words.

KVM counts the shadow pages that shadow a table at a gfn in ``gfn_track``, 16
bits a gfn (Linux 6.1 ``arch/x86/kvm/mmu/page_track.c``); a design that allows
2^16 of them would let the counter overflow. The comment above ``union
kvm_mmu_page_role`` (``arch/x86/include/asm/kvm_host.h``) estimates the number
from the bits: 2^19 for 6.1's, which it talks down to "a bit less than 2^13";
the glevel series put its own word at 2^15 (Message-Id
20220330132152.4568-3). Two counts are made here, neither of which is that
estimate:

* *raw*: 2 to the number of bits in use, without ``smm``. Pages of the other
  address space are counted in another memslot.
* *possible*: the words that the MMU's contexts really give. Every combination
  of the control bits that the CPU role looks at is loaded into a vCPU, in L1
  and in L2, on every kind of host; from the roots of each context follow the
  roles of its children, with every access. Counted is what is accounted: pages
  above level 1 that shadow a guest table. The host with the most counts, for a
  VM never leaves its host.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import log2, nan
from typing import NamedTuple

from mmulab.check.failure import FAILURES
from mmulab.kvm.context import kvm_init_mmu, kvm_init_shadow_ept_mmu, kvm_init_shadow_npt_mmu
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.root_strategy import RootStrategy, special, top_table_level
from mmulab.kvm.state import Vcpu
from mmulab.lab.cases.run import failure_str
from mmulab.machine.config import HostConfig, MachineConfig
from mmulab.machine.machine import Machine
from mmulab.x86.mode import PT_WRITABLE_MASK, VMX_EPT_EXECUTABLE_MASK, VMX_EPT_READABLE_MASK
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_NX,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)
from mmulab.x86.walk import EPT_ACCESS

__all__ = ["WRITE_TRACK_BITS", "PageBound", "page_bound"]

WRITE_TRACK_BITS = 16
"""Width of a gfn's write-track counter."""
_TOO_MANY = 1 << 18
"""Words at which counting ends: a word has far fewer unless a child's role never settles."""

_HOSTS = (
    HostConfig(la57=True),
    HostConfig(tdp=True),
    HostConfig(tdp=True, la57=True),
    HostConfig(tdp=True, x86_64=False),
    HostConfig(x86_64=False),
    HostConfig(vendor="intel", tdp=True, la57=True),
)
_MODES = (
    (0, 0),
    (X86_CR4_PAE, 0),
    (X86_CR4_PAE, EFER_LMA),
    (X86_CR4_PAE | X86_CR4_LA57, EFER_LMA),
)
_R, _W, _X = VMX_EPT_READABLE_MASK, PT_WRITABLE_MASK, VMX_EPT_EXECUTABLE_MASK
_EPT_RIGHTS = tuple(EPT_ACCESS[entry] for entry in (_R, _R | _W, _R | _X, _R | _W | _X, _X))
"""Rights of a way through EPT that can be used (SDM 3, 29.3.3.1)."""


class PageBound(NamedTuple):
    """Upper bounds on the shadow pages that one gfn is counted for.

    Attributes
    ----------
    possible : int or None
        Words that contexts can give, on the host with the most; None where the
        design fails in a context.
    raw_bits : int
        Bits of the word in use, ``smm`` left out.
    missing : str
        Why `possible` is None.
    """

    possible: int | None
    raw_bits: int
    missing: str = ""

    @property
    def bits(self) -> float:
        """Binary logarithm of `possible`; not a number where that has none."""
        return log2(self.possible) if self.possible else nan

    @property
    def fits(self) -> bool | None:
        """Whether the 16-bit counter holds that many; None: not known."""
        return None if self.possible is None else self.possible < 1 << WRITE_TRACK_BITS


def page_bound(design: RoleDesign, roots: RootStrategy = special) -> PageBound:
    """Count the words of upper-level pages with guest tables that `design` can give one gfn."""
    layout = design.layout
    raw = layout.used_bits - (layout.width_of("smm") if "smm" in layout.mask else 0)
    try:
        return PageBound(max(len(_words(design, roots, host)) for host in _HOSTS), raw)
    except FAILURES as error:
        return PageBound(None, raw, failure_str(error))


def _words(design: RoleDesign, roots: RootStrategy, host: HostConfig) -> dict[int, None]:
    """Return the words that are accounted on a host."""
    kernel = LINUX_6_1.with_(design=design, root_strategy=roots)
    machine = Machine(MachineConfig(host=host, backing_bytes=1 << 21, table_frames=64, kernel=kernel))
    words: dict[int, None] = {}
    for mmu, rights in _contexts(machine.kvm.vcpus[0], host):
        below = dict.fromkeys(_portals(design, roots, mmu))
        todo = list(_roots(design, mmu))
        while todo:
            word = todo.pop()
            if word not in below and design.facts(word).level > 1:
                below[word] = None
                if len(below) > _TOO_MANY:
                    raise ValueError(f"more than {_TOO_MANY} words in one context")
                todo += [design.child(word, direct=False, access=access, quadrant=0) for access in rights]
        words |= below
    facts = {word: design.facts(word) for word in words}
    return {word: None for word, said in facts.items() if not said.direct and not said.passthrough}


def _contexts(vcpu: Vcpu, host: HostConfig) -> Iterator[tuple[Mmu, tuple[int, ...]]]:
    """Yield every context that shadows something, and the rights of ways through its tables."""
    smep_smap_nx = product((0, X86_CR4_SMEP), (0, X86_CR4_SMAP), (0, EFER_NX))
    wps, worlds = (0, X86_CR0_WP), (False, True)
    for wp, (smep, smap, nx), (mode, lma), l2 in product(wps, smep_smap_nx, _MODES, worlds):
        if (lma and not host.x86_64) or (mode & X86_CR4_LA57 and not host.la57):
            continue
        vcpu.cr0, vcpu.cr4, vcpu.efer = X86_CR0_PE | X86_CR0_PG | wp, mode | smep | smap, lma | nx
        vcpu.guest_mode = l2
        rights = tuple(access for access in range(ACC_ALL + 1) if nx or access & ACC_EXEC_MASK)
        if not host.tdp:
            kvm_init_mmu(vcpu)
            yield vcpu.root_mmu, rights
        elif host.vendor == "amd" and l2:
            kvm_init_shadow_npt_mmu(vcpu, vcpu.cr4, vcpu.efer)
            yield vcpu.guest_mmu, rights
    if host.vendor == "intel":
        for level, ad, execonly in product((4, 5), (False, True), (False, True)):
            kvm_init_shadow_ept_mmu(vcpu, level=level, accessed_dirty=ad, execonly=execonly)
            yield vcpu.guest_mmu, _EPT_RIGHTS if execonly else _EPT_RIGHTS[:-1]


def _roots(design: RoleDesign, mmu: Mmu) -> Iterator[int]:
    """Yield the words of the pages that shadow the guest's highest table, whose rights are all."""
    facts, cpu = mmu.root_facts, mmu.cpu_role
    assert facts is not None
    top = top_table_level(cpu)
    for quadrant in range(4) if cpu.has_4_byte_gpte else (0,):
        yield design.pack(facts._replace(level=top, quadrant=quadrant, passthrough=False), cpu)


def _portals(design: RoleDesign, roots: RootStrategy, mmu: Mmu) -> Iterator[int]:
    """Yield the words of pages above the guest's highest table, unless special roots stand there."""
    facts, cpu = mmu.root_facts, mmu.cpu_role
    assert facts is not None
    top = top_table_level(cpu)
    if top >= 4 or roots.shadow_pages:
        for level in range(facts.level, top, -1):
            yield design.pack(facts._replace(level=level, quadrant=0, passthrough=True), cpu)
