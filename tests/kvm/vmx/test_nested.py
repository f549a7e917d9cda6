"""Nested VMX: what L1's EPT lets L2 do, and what L1 is told of the rest."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.vmx.vmcs12 import VMCS12, VMCS12_REVISION, VMCS12_SIZE, VmxState
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.runner import run as run_scenario
from mmulab.scenario.scenario import MODES
from mmulab.scenario.text import parse_scenario
from mmulab.x86.regs import X86_CR4_VMXE
from tests.kvm.l1 import run, vmx, work

VMCS, VMXON_REGION = 0xB000, 0xC000
L1_ROOT = 0x10000
EPT_ROOT = 0x14000
EPT_TABLES = {3: 0x60000, 2: 0x64000, 1: 0x65000}
HELPER_TABLES = {2: 0x61000, 1: 0x62000}
GPA, PAGE = 0x40000000, 0x100000
LEAF = EPT_TABLES[1]
"""Where L1's EPT maps GPA to PAGE."""
L1_WINDOW = 0x80_1000_0000
"""Where L1 maps that table for itself."""
WB, A, D = 6 << 3, 1 << 8, 1 << 9
R, W, X = 1, 2, 4
RWX = R | W | X
ACCESSES = {R: f"rd s 4 {GPA:x}", W: f"wr s 4 {GPA + 8:x} 1", X: f"xc s {GPA + 0x800:x}"}
EPT_VIOLATION, EPT_MISCONFIG, VMCALL = 48, 49, 18
FINAL = 1 << 7 | 1 << 8
"""Qualification: the linear address is valid, and this is its final translation."""
CONTROLS = {
    "revision_id": VMCS12_REVISION,
    "cpu_based_vm_exec_control": 1 << 31,
    "secondary_vm_exec_control": 1 << 1 | 1 << 7,
    "vm_exit_controls": 1 << 9 | 1 << 20 | 1 << 21,
    "vm_entry_controls": 1 << 15,
    "guest_cr0": 0x31,
    "guest_cr4": X86_CR4_VMXE,
    "host_rip": 0x19C0,
}


def guest(
    *ops: str,
    leaf: int = WB | RWX,
    directory: int = RWX,
    ad: bool = True,
    fields: dict[str, int] | None = None,
    host: dict[str, int] | None = None,
) -> tuple[list[Result], int]:
    """Run an L1 that enters a nonpaging L2 on a 4-level EPT, then `ops`.

    Returns
    -------
    results : list of Result
        Of the entry and of each op.
    leaf : int
        L1's entry for GPA afterwards.
    """
    host = {"ept": 1, "tdp_mmu": 0, "virt_bits": 48, **(host or {})}
    b = ScenarioBuilder("64", vendor="intel", cpu={"vmx": 1, "la57": 0}, host=host)
    regs = MODES["64"]
    regs = regs._replace(cr3=L1_ROOT, cr4=regs.cr4 | X86_CR4_VMXE)
    b.root(L1_ROOT).sregs(*regs)
    b.map(L1_WINDOW, LEAF)
    for page in (EPT_ROOT, *EPT_TABLES.values(), *HELPER_TABLES.values(), VMCS, VMXON_REGION):
        b.fill(page, 0x1000, 0)
    entries = {
        EPT_ROOT: EPT_TABLES[3] | RWX,
        EPT_TABLES[3]: HELPER_TABLES[2] | RWX,
        HELPER_TABLES[2]: HELPER_TABLES[1] | RWX,
        HELPER_TABLES[1] + 8: 0x1000 | WB | RWX,
        EPT_TABLES[3] + 8: EPT_TABLES[2] | RWX,
        EPT_TABLES[2]: LEAF | directory,
        LEAF: PAGE | leaf,
    }
    for at, entry in entries.items():
        b.value(8, at, entry)
    eptp = EPT_ROOT | 3 << 3 | 6 | (1 << 6 if ad else 0)
    image = {
        **CONTROLS,
        "ept_pointer": eptp,
        "host_cr0": regs.cr0,
        "host_cr3": regs.cr3,
        "host_cr4": regs.cr4,
        "host_ia32_efer": regs.efer,
        **(fields or {}),
    }
    for name, value in image.items():
        field = VMCS12[name]
        for i in range(0, field.size, 4):
            b.value(min(field.size, 4), VMCS + field.offset + i, value >> 8 * i & 0xFFFFFFFF)
    b.value(4, VMXON_REGION, VMCS12_REVISION)
    for op in ("nop", f"vmxon {VMXON_REGION:x}", f"vmrun {VMCS:x}", *ops):
        b.op(op)
    runner = Runner(b.build())
    results = [r for r in runner.results() if r.text not in ("init", "teardown", "~vmptrld")][2:]
    memory = runner.machine.memory
    return results, memory.load64((memory.backing << 12) + LEAF)


def refusal(result: Result) -> tuple[int, int] | None:
    """Return reason and qualification if L1 got an exit, None if L2 went on."""
    if result.outcome.kind is not OutcomeKind.VMEXIT:
        assert result.outcome.kind is OutcomeKind.OK
        return None
    assert result.outcome.vmexit is not None
    return result.outcome.vmexit["reason"], result.outcome.vmexit["qual"]


@pytest.mark.parametrize("ad", [True, False])
@pytest.mark.parametrize(("rwx", "access"), list(product(range(8), ACCESSES)))
def test_leaf_rights_decide(rwx: int, access: int, ad: bool) -> None:
    (entry, result), _ = guest(ACCESSES[access], leaf=WB | rwx, ad=ad)
    assert entry.outcome.kind is OutcomeKind.L2
    told = refusal(result)
    if rwx & W and not rwx & R:
        assert told == (EPT_MISCONFIG, FINAL | access)
    elif rwx & access:
        assert told is None
    else:
        assert told == (EPT_VIOLATION, FINAL | access | rwx << 3)


@pytest.mark.parametrize(("directory", "access"), list(product((R, X, R | X, RWX), ACCESSES)))
def test_a_path_has_the_rights_that_all_its_entries_have(directory: int, access: int) -> None:
    (_, result), _ = guest(ACCESSES[access], directory=directory)
    allowed = None if directory & access else (EPT_VIOLATION, FINAL | access | directory << 3)
    assert refusal(result) == allowed


@pytest.mark.parametrize("bad", [2 << 3 | RWX, 3 << 3 | RWX, 7 << 3 | RWX, WB | W | X, WB | RWX | 1 << 45])
def test_a_misconfiguration_is_told_with_the_violations_qualification(bad: int) -> None:
    (_, result), _ = guest(ACCESSES[R], leaf=bad)
    assert refusal(result) == (EPT_MISCONFIG, FINAL | R)
    assert result.outcome.vmexit is not None
    assert result.outcome.vmexit["gpa"] == result.outcome.vmexit["gla"] == GPA


def test_accessed_and_dirty_bits_follow_the_ept_pointer() -> None:
    for ad, ops, bits in (
        (True, (ACCESSES[R],), A),
        (True, (ACCESSES[R], ACCESSES[W]), A | D),
        (True, (ACCESSES[W],), A | D),
        (False, (ACCESSES[R], ACCESSES[W]), 0),
    ):
        _, leaf = guest(*ops, ad=ad)
        assert leaf & (A | D) == bits


def test_a_clean_page_is_mapped_read_only_only_with_dirty_bits() -> None:
    for ad, writes in ((True, 1), (False, 0)):
        (_, _, write), _ = guest(ACCESSES[R], ACCESSES[W], ad=ad)
        exits = [e for e in write.events if isinstance(e, ev.kvm_exit) and e.reason == "ept_violation"]
        assert len(exits) == writes


def test_entries_stay_until_invept() -> None:
    """VM entry flushes no EPT translations: only INVEPT brings L1's change to L2."""
    again = (f"vmrun {VMCS:x}", ACCESSES[R], "vmcall")
    results, _ = guest(
        ACCESSES[R],
        "vmcall",
        f"wr s 8 {L1_WINDOW:x} 0",
        *again,
        "invept 2 0 0",
        *again[:2],
    )
    kept, gone = results[5], results[-1]
    assert refusal(kept) is None
    assert refusal(results[6]) == (VMCALL, 0)
    assert refusal(gone) == (EPT_VIOLATION, FINAL | R)


@pytest.mark.parametrize("bits", [3 << 3 | 5, 3 << 3 | 0, 2 << 3 | 6, 4 << 3 | 6, 3 << 3 | 6 | 1 << 9])
def test_a_bad_ept_pointer_fails_the_entry(bits: int) -> None:
    (entry,), _ = guest(fields={"ept_pointer": EPT_ROOT | bits})
    assert (entry.outcome.kind, entry.outcome.zf, entry.outcome.error) == (OutcomeKind.VMFAIL, 1, 7)


def test_an_ept_pointer_out_of_memory_ends_the_vm() -> None:
    (entry,), _ = guest(fields={"ept_pointer": 0x3000000 | 3 << 3 | 6})
    assert (entry.outcome.kind, entry.outcome.error) == (OutcomeKind.HANG, 5)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("exception_bitmap", 1 << 14, "exception_bitmap is 0x4000"),
        ("cpu_based_vm_exec_control", 1 << 31 | 1 << 9, "INVLPG exiting"),
        ("vm_entry_intr_info_field", 1 << 31, "injects an event"),
        ("vm_entry_controls", 1 << 15 | 1 << 14, "loading IA32_PAT on .bit 14 of vm_entry_controls."),
        ("vm_exit_controls", 1 << 9 | 1 << 21 | 1 << 12, "loading IA32_PERF_GLOBAL_CTRL on"),
        ("pin_based_vm_exec_control", 1 << 6, "the preemption timer on"),
        ("secondary_vm_exec_control", 0x82 | 1 << 14, "VMCS shadowing on"),
        ("guest_activity_state", 1, "guest_activity_state is 0x1"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(field: str, value: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        guest(fields={field: value})


BEYOND = 1 << 40
SELECTORS = {f"host_{name}_selector": 0x10 for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr")}
BAD_CONTROLS: list[dict[str, int]] = [
    {"pin_based_vm_exec_control": 1 << 1},
    {"pin_based_vm_exec_control": 1 << 8},
    {"pin_based_vm_exec_control": 1 << 5},
    {"cpu_based_vm_exec_control": 1 << 31 | 0x172},
    {"cpu_based_vm_exec_control": 1 << 31 | 1 << 17},
    {"cpu_based_vm_exec_control": 1 << 31 | 1 << 22},
    {"secondary_vm_exec_control": 1 << 1 | 1 << 7 | 1 << 22},
    {"secondary_vm_exec_control": 1 << 7},
    {"secondary_vm_exec_control": 1 << 1 | 1 << 7 | 1 << 5},
    {"cr3_target_count": 1},
    {"vm_exit_controls": 1 << 9 | 1 << 20 | 1 << 21 | 1 << 24},
    {"vm_exit_controls": 1 << 9 | 1 << 20 | 1 << 21 | 1 << 22},
    {"vm_exit_controls": 1 << 9 | 1 << 20 | 1 << 21 | 1},
    {"vm_entry_controls": 1 << 15 | 1 << 10},
    {"vm_entry_controls": 1 << 15 | 1},
]
BAD_HOST_STATE: list[dict[str, int]] = [
    {"vm_exit_controls": 1 << 20},
    {"host_cr0": 0x80010011},
    {"host_cr0": 0x31},
    {"host_cr4": 0x20},
    {"host_cr4": 0x802020},
    {"host_cr4": 0x2000},
    {"host_cr3": BEYOND},
    {"host_rip": 1 << 47},
    {"host_fs_base": 1 << 47},
    {"host_tr_base": 1 << 63},
    {"host_ia32_sysenter_eip": 1 << 48},
    {"host_ia32_efer": 0x1D00},
    {"host_ia32_efer": 0x900},
    {"host_ia32_efer": 0},
    {**SELECTORS, "host_ds_selector": 0x13},
    {**SELECTORS, "host_cs_selector": 0},
    {**SELECTORS, "host_tr_selector": 0x14},
]
BAD_GUEST_STATE: list[tuple[dict[str, int], int]] = [
    ({"guest_cr0": 1 << 31 | 0x20}, 0),
    ({"guest_cr0": 0x11}, 0),
    ({"guest_cr0": 1 << 32 | 0x31}, 0),
    ({"guest_cr4": 0}, 0),
    ({"guest_cr4": 0x802000}, 0),
    ({"guest_cr4": 0x3000}, 0),
    ({"guest_cr3": BEYOND}, 0),
    ({"guest_ia32_efer": 0x1000}, 0),
    ({"guest_ia32_efer": 0x500}, 0),
    ({"vm_entry_controls": 1 << 15 | 1 << 9, "guest_ia32_efer": 0xD00}, 0),
    ({"vm_entry_controls": 1 << 15 | 1 << 2, "guest_dr7": 1 << 32}, 0),
    ({"guest_activity_state": 2}, 0),
    ({"vmcs_link_pointer": 0x10800}, 4),
    ({"vmcs_link_pointer": 0x10000}, 4),
]


@pytest.mark.parametrize("fields", BAD_CONTROLS, ids=str)
def test_vm_entry_fails_on_controls_that_kvm_does_not_offer(fields: dict[str, int]) -> None:
    (entry,), _ = guest(fields=fields)
    assert (entry.outcome.kind, entry.outcome.zf, entry.outcome.error) == (OutcomeKind.VMFAIL, 1, 7)
    assert any(isinstance(e, ev.kvm_nested_vmenter) for e in entry.events) is False


@pytest.mark.parametrize("fields", BAD_HOST_STATE, ids=str)
def test_vm_entry_fails_on_a_state_that_l1_cannot_have(fields: dict[str, int]) -> None:
    (entry,), _ = guest(fields=fields)
    assert (entry.outcome.kind, entry.outcome.zf, entry.outcome.error) == (OutcomeKind.VMFAIL, 1, 8)


@pytest.mark.parametrize(("fields", "qualification"), BAD_GUEST_STATE, ids=str)
def test_l1_gets_an_exit_for_a_state_that_l2_cannot_have(fields: dict[str, int], qualification: int) -> None:
    (entry, after), _ = guest(f"rd s 4 {L1_WINDOW:x}", fields=fields)
    assert entry.outcome.kind is OutcomeKind.VMEXIT
    assert entry.outcome.vmexit is not None
    assert (entry.outcome.vmexit["reason"], entry.outcome.vmexit["qual"]) == (1 << 31 | 33, qualification)
    assert any(isinstance(e, ev.kvm_nested_vmenter_failed) for e in entry.events)
    assert after.outcome.kind is OutcomeKind.OK, "L1 goes on"


@pytest.mark.parametrize(
    "fields",
    [
        SELECTORS,
        {"vmcs_link_pointer": (1 << 64) - 1},
        {"cpu_based_vm_exec_control": 0x84006172, "pin_based_vm_exec_control": 0x16},
        {"vm_exit_controls": 0x336FFF, "vm_entry_controls": 0x91FF, "guest_dr7": 0x400},
    ],
    ids=str,
)
def test_what_vm_entry_allows(fields: dict[str, int]) -> None:
    (entry,), _ = guest(fields=fields)
    assert entry.outcome.kind is OutcomeKind.L2


def test_controls_around_ept_take_a_host_that_has_it() -> None:
    """``nested_vmx_setup_ctls_msrs``; page-modification logging takes A/D bits as well."""
    pml = {"secondary_vm_exec_control": 0x20082}
    for host, fields in (({"ept": 0}, {}), ({"eptad": 0}, pml)):
        (entry,), _ = guest(fields=fields, ad=False, host=host)
        assert (entry.outcome.kind, entry.outcome.error) == (OutcomeKind.VMFAIL, 7)


@pytest.mark.parametrize(("op", "vector"), [("cr4 20", 13), ("cr4 802020", 13), ("cr0 80010011", 13)])
def test_registers_keep_what_vmx_operation_needs(op: str, vector: int) -> None:
    """CR4.VMXE and CR0.NE stay set after VMXON (``vmx_is_valid_cr4``, ``vmx_is_valid_cr0``)."""
    outcome = _l1_ops(f"vmxon {VMXON_REGION:x}", op)[-1]
    assert (outcome.kind, outcome.vector) == (OutcomeKind.EXC, vector)
    assert _l1_ops(op)[-1].vector != vector or op == "cr4 802020"


def test_vmxon_takes_registers_of_vmx_operation() -> None:
    outcome = _l1_ops("cr0 80010011", f"vmxon {VMXON_REGION:x}")[-1]
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, 13, 0)


@pytest.mark.parametrize("op", ["vmxon c000", "vmptrld b000", "vmw 681e 0", "invvpid 2 0 0"])
def test_without_nested_vmx_is_undefined(op: str) -> None:
    """Every VMX instruction exits, and the guest gets #UD (``handle_vmx_instruction``)."""
    text = f"mmulab-scenario 1\nmode 64\nhost intel nested=0\ncpu vmx=1\nroot 10000\nops\n{op}\nend\n"
    (result,) = [r for r in run_scenario(parse_scenario(text)) if r.text == op]
    assert (result.outcome.kind, result.outcome.vector) == (OutcomeKind.EXC, 6)
    assert any(isinstance(e, ev.kvm_exit) for e in result.events)


def _l1_ops(*texts: str) -> list[Outcome]:
    regs = MODES["64"]._replace(cr3=L1_ROOT, cr4=MODES["64"].cr4 | X86_CR4_VMXE)
    b = ScenarioBuilder("64", vendor="intel", cpu={"vmx": 1, "la57": 0}, host={"virt_bits": 48})
    b.root(L1_ROOT).sregs(*regs).fill(VMXON_REGION, 0x1000, 0).value(4, VMXON_REGION, VMCS12_REVISION)
    for text in texts:
        b.op(text)
    return [r.outcome for r in run_scenario(b.build()) if r.text in texts]


def test_a_host_without_vmcs_shadowing_is_refused() -> None:
    b = ScenarioBuilder("np", vendor="intel", host={"enable_shadow_vmcs": 0}).op("vmxon c000", line=7)
    with pytest.raises(InputError, match="line 7: the op vmxon is not modelled on a host with enable_"):
        Runner(b.build())


@given(st.data())
def test_fields_do_not_overlap(data: st.DataObject) -> None:
    vmx = VmxState(image=bytes(VMCS12_SIZE))
    wanted = {}
    for name in data.draw(st.permutations(sorted(VMCS12))):
        wanted[name] = data.draw(st.integers(0, (1 << 8 * VMCS12[name].size) - 1))
        vmx.put(name, wanted[name])
    assert {name: vmx.get(name) for name in wanted} == wanted


EPT_WORLDS = [
    ("np", 4, True),
    ("np", 5, False),
    ("64", 4, True),
    ("64", 5, False),
    ("32", 4, False),
    ("pae", 4, True),
]


@pytest.mark.parametrize(("l2", "levels", "ad"), EPT_WORLDS)
@settings(max_examples=30)
@given(data=st.data())
def test_l2_follows_both_tables_after_any_edit_and_invept(
    l2: str, levels: int, ad: bool, data: st.DataObject
) -> None:
    """Rights, misconfigurations and A/D bits of L1's EPT, and L2's own tables."""
    for access in run(data.draw(work(vmx(l2, levels, ad=ad)))):
        access.check()
