"""What the host does to the backing: protection and swap, and what the guest sees of it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import KERNELS, LINUX_6_1, LINUX_6_12
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig, Stubs
from mmulab.machine.machine import Machine
from mmulab.machine.op import OutcomeKind
from mmulab.trace.checkpoints import digest
from tests.kvm.guest import DATA, GVA, MIB, PS, A, D, Guest, P, U, W

HOSTS = {
    "shadow": HostConfig(),
    "direct": HostConfig(tdp=True),
    "tdp_mmu": HostConfig(tdp=True, tdp_mmu=True),
}


def protect(guest: Guest, gpa: int, length: int, access: int) -> int | None:
    return guest.machine.execute(ops.Protect(gpa, length, access)).result


@pytest.mark.parametrize("host", HOSTS)
def test_a_read_only_mapping_gives_read_only_sptes_that_a_fast_fault_leaves_alone(host: str) -> None:
    guest = Guest("np", host=HOSTS[host])
    guest.write(DATA)
    assert protect(guest, DATA, 0x1000, 1) == 0
    assert not guest.spte(DATA), "the notifier has dropped it"
    assert guest.read(DATA).kind is OutcomeKind.OK
    fmt = guest.kvm.fmt
    assert not guest.spte(DATA) & (W | fmt.host_writable | fmt.mmu_writable)
    failed = guest.write(DATA)
    assert (failed.kind, failed.error) == (OutcomeKind.HANG, errno.EFAULT)
    protect(guest, DATA, 0x1000, 3)
    assert guest.write(DATA, 7).kind is OutcomeKind.OK
    assert guest.load(DATA, 4) == 7


@pytest.mark.parametrize("host", HOSTS)
def test_what_the_vmm_may_not_read_the_guest_cannot_either(host: str) -> None:
    guest = Guest("np", host=HOSTS[host])
    protect(guest, DATA, 0x1000, 0)
    assert guest.read(DATA + 0x1000).kind is OutcomeKind.OK
    failed = guest.read(DATA)
    assert (failed.kind, failed.error) == (OutcomeKind.HANG, errno.EFAULT)


def test_prefetch_maps_up_to_the_first_page_that_is_not_writable() -> None:
    guest = Guest("np")
    protect(guest, DATA + 0x4000, 0x1000, 1)
    guest.read(DATA + 0x1000)
    # Up to there in the run of 2 to 7; a run that begins with it ends the prefetch.
    assert [bool(guest.spte(DATA + i * 0x1000)) for i in range(8)] == [i < 4 for i in range(8)]


def test_prefetch_of_guest_entries_ends_there_too() -> None:
    guest = Guest("64")
    for i in range(8):
        guest.map(GVA + i * 0x1000, DATA + i * 0x1000)
    protect(guest, DATA + 0x4000, 0x1000, 1)
    guest.read(GVA)
    assert [bool(guest.spte(GVA + i * 0x1000)) for i in range(8)] == [i < 4 for i in range(8)]


def test_tables_that_the_vmm_cannot_write_fail_the_walk_that_has_to_set_a_bit() -> None:
    guest = Guest("64")
    guest.map(GVA, DATA, P | W | U)
    table = guest.table(GVA)
    protect(guest, table, 0x1000, 1)
    failed = guest.read(GVA)
    assert (failed.kind, failed.vector, failed.error_code) == (OutcomeKind.EXC, 14, 0)
    protect(guest, table, 0x1000, 3)
    guest.poke(guest.entry(GVA), DATA | P | W | U | A | D)
    protect(guest, table, 0x1000, 1)
    assert guest.read(GVA).kind is OutcomeKind.OK, "nothing is to be set"


def test_tables_that_the_vmm_cannot_read_are_not_there() -> None:
    guest = Guest("64").map(GVA, DATA)
    protect(guest, guest.table(GVA), 0x1000, 0)
    failed = guest.read(GVA)
    assert (failed.kind, failed.vector, failed.error_code) == (OutcomeKind.EXC, 14, 0)


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_an_emulated_write_to_a_read_only_mapping_goes_to_the_vmm(kernel: str) -> None:
    rules = {} if kernel == "6.1" else {"behaviours": LINUX_6_12.behaviours}
    guest = Guest("64", **rules)
    guest.map(GVA, DATA).map(GVA + 0x1000, guest.table(GVA, 2))
    guest.read(GVA)
    protect(guest, guest.table(GVA, 2), 0x1000, 1)
    guest.read(GVA + 0x1000)
    done = guest.write(GVA + 0x1000 + 0x800, 5)
    assert done.mmio is not None
    assert [(m.write, m.gpa, m.value) for m in done.mmio] == [(True, guest.table(GVA, 2) + 0x800, 5)]


def test_a_huge_page_stays_huge_and_is_split_where_its_mapping_is() -> None:
    guest = Guest("np", thp=True, host=HOSTS["tdp_mmu"])
    for gpa, length, huge in ((4 * MIB, 2 * MIB, True), (4 * MIB, 0x1000, False)):
        protect(guest, gpa, length, 1)
        guest.read(gpa)
        assert bool(guest.spte(gpa, 2) & PS) == huge
        protect(guest, gpa, length, 3)


def machine_of(**config: object) -> Machine:
    size = 8 * MIB
    slots = (SlotConfig(0, 0, size, 0, 0),)
    return Machine(MachineConfig(backing_bytes=size, slots=slots, table_frames=64, **config))


@pytest.mark.parametrize(
    ("steps", "ranges"),
    [
        ([(0x200, 0x10, 1)], [(0x200, 0x3FF), (0x200, 0x20F)]),
        ([(0x210, 0x10, 1)], [(0x200, 0x3FF), (0x210, 0x21F)]),
        ([(0x200, 0x200, 1), (0x200, 0x200, 1)], [(0x200, 0x3FF)]),  # nothing changes the second time
        ([(0x200, 0x200, 1), (0x100, 0x200, 1)], [(0x200, 0x3FF), (0, 0x1FF), (0x100, 0x1FF)]),
        ([(0x200, 0x200, 1), (0x200, 0x200, 0)], [(0x200, 0x3FF)] * 2),
        ([(0x200, 0x200, 1), (0x100, 0x400, 3)], [(0x200, 0x3FF)] * 2),
    ],
)
def test_each_mapping_that_changes_is_invalidated(
    steps: list[tuple[int, int, int]], ranges: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of(thp=True)
    base = machine.memory.backing
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmulab.machine.host_memory.kvm_unmap_hva_range",
        lambda kvm, first, last: called.append((first - base, last - base)),
    )
    for first, count, access in steps:
        assert machine.execute(ops.Protect(first << 12, count << 12, access)).result == 0
    assert called == ranges


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.sampled_from((0, 1, 3))), max_size=8))
def test_access_is_what_was_last_said_of_a_page(steps: list[tuple[int, int, int]]) -> None:
    machine = machine_of()
    memory = machine.memory
    wanted = [3] * 40
    for first, count, access in steps:
        machine.execute(ops.Protect(first << 12, count << 12, access))
        wanted[first : first + count] = [access] * count
    assert [memory.access(memory.backing + i) for i in range(40)] == wanted
    assert [memory.is_special(memory.backing + i) for i in range(40)] == [a != 3 for a in wanted]


def test_what_the_vmm_cannot_do_is_said() -> None:
    machine = machine_of(stubs=Stubs(0x1000, 0x2000))
    assert machine.execute(ops.Protect(0x10, 0x1000, 1)).result == -errno.EINVAL
    assert machine.execute(ops.Protect(0x10000, 0, 1)).result == 0
    with pytest.raises(InputError, match="hold the stubs"):
        machine.execute(ops.Protect(0, 0x10000, 1))
    machine.execute(ops.Protect(0x10000, 0x1000, 1))
    with pytest.raises(InputError, match="may not write at 0x10008"):
        machine.execute(ops.HostWrite(4, 0x10008, 1))


def test_a_checkpoint_keeps_it() -> None:
    one, other = machine_of(), machine_of()
    one.execute(ops.Protect(0x10000, 0x1000, 1))
    assert digest(one) != digest(other)


def swapped(kernel: Kernel = LINUX_6_1, mode: str = "np", host: str = "shadow") -> Guest:
    """A guest whose page DATA was read, and its table used, before the host took DATA away."""
    guest = Guest(mode, host=HOSTS[host], behaviours=kernel.behaviours)
    if mode != "np":
        guest.map(GVA, DATA)
    guest.read(DATA if mode == "np" else GVA)
    assert guest.machine.execute(ops.SwapOut(DATA, 0x1000)).result == 0
    assert guest.hpa(DATA) >> 12 in guest.machine.memory.swapped
    return guest


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=str)
def test_what_is_swapped_out_comes_back_for_a_read_writable_from_6_11_on(kernel: Kernel, host: str) -> None:
    guest = swapped(kernel, host=host)
    assert guest.spte(DATA) == guest.kvm.fmt.nonpresent
    guest.read(DATA)
    assert bool(guest.spte(DATA) & guest.kvm.fmt.host_writable) == (kernel is LINUX_6_12)
    guest.machine.execute(ops.SwapOut(DATA, 0x1000))
    guest.write(DATA, 7)
    assert guest.spte(DATA) & guest.kvm.fmt.host_writable
    assert not guest.machine.memory.swapped
    assert not guest.machine.memory.clean


def test_before_6_9_each_pass_asks_whether_a_page_was_accessed() -> None:
    for kernel, asked in ((LINUX_6_1, 2), (LINUX_6_12, 0)):
        guest = swapped(kernel)
        assert len(guest.of(ev.kvm_age_hva)) == asked, "young the first time, old the second"
        assert len(guest.of(ev.kvm_unmap_hva_range)) == 1


def test_a_table_that_is_swapped_out_cannot_be_synced() -> None:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x1000, DATA)
    table = guest.table(GVA)
    guest.map(GVA + 0x2000, table)
    guest.read(GVA)
    guest.write(GVA + 0x2000 + 0x800, 0)  # the table goes out of sync
    assert guest.page(GVA).unsync
    guest.machine.execute(ops.SwapOut(table, 0x1000))
    with guest.watch() as seen:
        guest.cr3()
    assert any(isinstance(e, ev.kvm_mmu_prepare_zap_page) and e.gfn == table >> 12 for e in seen)
    assert guest.read(GVA).kind is OutcomeKind.OK, "the walk brings it back"
    assert not guest.machine.memory.swapped


def test_prefetch_leaves_out_what_is_swapped_out() -> None:
    guest = Guest("np")
    guest.machine.execute(ops.SwapOut(DATA + 0x4000, 0x1000))
    guest.read(DATA + 0x1000)
    assert [bool(guest.spte(DATA + i * 0x1000)) for i in range(8)] == [i < 4 for i in range(8)]


def test_the_vmm_brings_pages_back() -> None:
    guest = swapped()
    guest.machine.execute(ops.HostWrite(4, DATA, 9))
    assert not guest.machine.memory.swapped
    guest.read(DATA)
    guest.machine.execute(ops.SwapOut(DATA, 0x2000))
    guest.machine.execute(ops.InvalidateHva(DATA, 0x2000))
    assert not guest.machine.memory.swapped
    assert guest.load(DATA, 4) == 9


def test_what_cannot_be_swapped_out_is_said() -> None:
    machine = machine_of(thp=True, stubs=Stubs(0x1000, 0x2000))
    assert machine.execute(ops.SwapOut(0x10, 0x1000)).result == -errno.EINVAL
    assert machine.execute(ops.SwapOut(0x10000, 0)).result == 0
    with pytest.raises(InputError, match="hold the stubs"):
        machine.execute(ops.SwapOut(0, 0x10000))
    with pytest.raises(InputError, match="some are a 2 MiB page"):
        machine.execute(ops.SwapOut(2 * MIB, 0x1000))
    machine.execute(ops.Protect(2 * MIB, 0x1000, 1))
    with pytest.raises(InputError, match="some are protected"):
        machine.execute(ops.SwapOut(2 * MIB, 0x2000))
    machine.execute(ops.SwapOut(2 * MIB + 0x1000, 0x1000))
    with pytest.raises(InputError, match="some were swapped out"):
        machine.execute(ops.Protect(2 * MIB, 0x2000, 3))
