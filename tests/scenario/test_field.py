"""Scenarios from the field whose answers Linux 6.1's source gives: each pins what must come of it."""

from __future__ import annotations

import errno

from mmulab import events as ev
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import Result
from tests.scenario.texts import ran


def ended(result: Result) -> str:
    return outcome_str(encode_outcome(result.outcome))


MMIO_THEN_MEMORY = """mode 32
slot0 1000000
slot 1 30000000 1000 0 0
root 10000
alloc 20000
m4 10400 20067
m4 20000 20000067
ops
rd s 40000000
{changes}
slot 2 20000000 1000 0 200000
rd s 40000000"""


def test_memory_takes_the_place_of_mmio_after_any_number_of_changes() -> None:
    """``check_mmio_spte`` compares generations; each change of a slot turns them."""
    for count in range(8):
        changes = "\n".join(f"slot 1 30000000 1000 {1 - n % 2} 0" for n in range(count))
        first, *_, last = ran(MMIO_THEN_MEMORY.format(changes=changes))
        assert ended(first) == "ok rip=1802 rax=d0d0d0d0 mmio=r4@20000000=d0d0d0d0"
        assert ended(last) == "ok rip=1802 rax=90909090"


ACROSS = """host amd
mode 64
root 10000
alloc 20000 21000 22000
m8 10008 20067
m8 20000 21067
m8 21000 22067
m8 22000 300067 20000067 301067 200000000067
ops
{op}"""


def test_an_access_across_memory_and_mmio_is_split_at_the_page() -> None:
    """``emulator_read_write``: memory at once, MMIO as a fragment for the VMM, in order of addresses."""
    expected = {
        "rd s 8 8000000ffc": "ok rip=1823 rax=d0d0d0d090909090 mmio=r4@20000000=d0d0d0d0",
        "wr s 8 8000000ffc 1122334455667788": ("ok rip=1833 rax=1122334455667788 mmio=w4@20000000=11223344"),
        "rd s 8 8000001ffc": "ok rip=1823 rax=90909090d0d0d0d0 mmio=r4@20000ffc=d0d0d0d0",
        "wr s 4 8000001ffe aabbccdd": "ok rip=1812 rax=aabbccdd mmio=w2@20000ffe=ccdd",
        "rd s 8 8000002ffc": "exc vec=e err=9 rip=1820 cr2=8000003000",
    }
    for op, outcome in expected.items():
        (result,) = ran(ACROSS.format(op=op))
        assert ended(result) == outcome
    (stored, read) = ran(ACROSS.format(op="wr s 4 8000001ffe aabbccdd\nrd s 8000002000"))
    assert ended(read) == "ok rip=1802 rax=9090aabb", "the half in memory was written"
    assert any(isinstance(e, ev.kvm_mmu_pte_write) and e.gpa == 0x301000 for e in stored.events)


def test_a_tdp_root_outlives_a_reset_of_the_mmu() -> None:
    """The TDP MMU holds a root itself until it is invalidated (``kvm_tdp_mmu_get_vcpu_root_hpa``)."""
    done = ran(
        "host intel ept=1\nmode 64\nroot 10000\nops\nrd s 1000\ncr4 100020\nrd s 1000\ncr4 20\nrd s 1000"
    )
    names = [[type(event).__name__ for event in result.events] for result in done]
    for reset, read in ((names[1], names[2]), (names[3], names[4])):
        assert "kvm_mmu_reset_context" in reset
        assert "kvm_mmu_load" in read
        assert not {"kvm_mmu_get_page", "kvm_tdp_mmu_spte_changed", "kvm_page_fault"} & {*reset, *read}


def test_l1s_ept_pointer_into_no_memory_is_kvms_own_death() -> None:
    """A legal EPTP whose root is in no memslot: the triple fault is L2's while its entry is pending.

    ``nested_vmx_vmexit`` leaves ``nested_run_pending`` set, and ``__vmx_handle_exit``
    takes that for a bug of KVM's: -EIO, as in the recordings ``nested-ept/ept-misconfig-eptp-*``.
    """
    done = ran(EPTP_IN_NO_MEMORY)
    assert ended(done[0]) == "ok rip=1934 rax=0 cf=0 zf=0"
    assert (done[-1].outcome.kind, done[-1].outcome.error) == (OutcomeKind.HANG, errno.EIO)


EPTP_IN_NO_MEMORY = """host intel virt_bits=30 ept=1 tdp_mmu=0
cpu vmx=1
mode 64
sregs 80010031 10000 2020 d00
mem 1000000
slot 0 0 1000000 0 0
fill c000 1000 0
fill 10000 1000 0
fill 40000 1000 0
fill 41000 1000 0
fill 42000 1000 0
fill 14000 1000 0
fill 43000 1000 0
fill 44000 1000 0
fill 45000 1000 0
fill 46000 1000 0
fill 47000 1000 0
fill b000 1000 0
fill 48000 1000 0
m4 100000 c0de0100
m4 300000 c0de0300
m4 302000 c0de0302
m4 c000 11e57ed0
m8 10000 40067
m8 40000 41067
m8 41000 42067
m8 42008 1067
m8 42010 2067
m8 14000 43007
m8 43000 44007
m8 44000 45007
m8 45008 1037
m8 45010 2037
m8 43008 46007
m8 46000 47007
m8 47000 100037
m4 b000 11e57ed0
m4 b2ec 80000000
m4 b324 82
m4 b078 fed4005e
m4 b07c 0
m4 b300 300200
m4 b30c 8000
m4 b1a8 31
m4 b1ac 0
m4 b1b0 0
m4 b1b4 0
m4 b1b8 2000
m4 b1bc 0
m4 b0c8 0
m4 b0cc 0
m4 b248 80010031
m4 b24c 0
m4 b250 10000
m4 b254 0
m4 b258 2020
m4 b25c 0
m4 b108 d00
m4 b10c 0
m4 b2a0 19c0
m4 b2a4 0
m8 46008 48007
m8 48000 300037
ops
vmxon c000
vmrun b000"""
