"""The kernel's assertions in the model: each can fire, and what follows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.kvm.assertions import HostDiedError, Severity, assertions, bug_on, kvm_bug_on, warn_on
from mmulab.kvm.state import Request
from mmulab.machine import op as ops
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import Runner
from tests.kvm.guest import Guest
from tests.kvm.l1 import CONTROL_PAGE, svm

ROOT = "mmu.c:shadow_walk_init_using_root:root"
_CALL = re.compile(r'\b(bug_on|kvm_bug_on|warn_on)\(\s*[\w.]+,\s*"([^"]+)"')
_SAYS = {
    "bug_on": {Severity.BUG, Severity.BUG_ON},
    "kvm_bug_on": {Severity.KVM_BUG_ON},
    "warn_on": set(Severity) - {Severity.BUG, Severity.BUG_ON, Severity.KVM_BUG_ON},
}


# The table ------------------------------------------------------------------------------


def test_what_is_modelled_stands_in_the_model_with_its_severity(root: Path) -> None:
    placed = set()
    for path in sorted((root / "mmulab").rglob("*.py")):
        if path.name == "assertions.py":
            continue
        for call, name in _CALL.findall(path.read_text()):
            assert assertions()[name].severity in _SAYS[call], name
            placed.add(name)
    assert placed == {a.name for a in assertions().values() if a.modelled}


def test_a_row_says_where_the_kernel_has_it_and_why_the_model_has_not() -> None:
    for row in assertions().values():
        file, function, word = row.name.split(":")
        assert row.file.endswith(file), row
        assert function
        assert word, row
        assert row.condition, row
        assert row.modelled or row.note, row


# What follows ---------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "said"), [(Severity.WARN_ON, 2), (Severity.WARN_ON_ONCE, 1)])
def test_a_warning_goes_on_and_is_said_once_or_each_time(guest: Guest, severity: Severity, said: int) -> None:
    kvm, name = guest.kvm, next(a.name for a in assertions().values() if a.severity is severity)
    with guest.watch() as seen:
        assert not warn_on(kvm, name, False)
        assert kvm.fired == {}
        assert warn_on(kvm, name, True)
        assert warn_on(kvm, name, True)
    assert kvm.fired == {name: 2}
    row = assertions()[name]
    assert seen == [ev.kvm_assertion(name, str(severity), row.condition)] * said


def test_counting_is_off_until_somebody_counts(guest: Guest) -> None:
    warn_on(guest.kvm, ROOT, True)
    assert guest.kvm.assertion_counts is None
    guest.kvm.assertion_counts = {}
    warn_on(guest.kvm, ROOT, False)
    warn_on(guest.kvm, ROOT, True)
    bug_on(guest.kvm, ROOT, False)
    assert guest.kvm.assertion_counts == {ROOT: (3, 1)}


def test_a_bug_of_the_vm_lets_it_run_no_more(guest: Guest) -> None:
    name = "mmu.c:kvm_mmu_page_fault:invalid"
    assert not kvm_bug_on(guest.kvm, name, False)
    assert not guest.vcpu.requests & Request.VM_DEAD
    assert kvm_bug_on(guest.kvm, name, True)
    assert guest.machine.execute(ops.Nop()).kind is OutcomeKind.HANG


def test_a_bug_stops_the_host() -> None:
    guest = Guest("64")
    with pytest.raises(HostDiedError, match="BUG_ON"):
        bug_on(guest.kvm, ROOT, True)
    bug_on(guest.kvm, ROOT, False)


# Reached by a guest ---------------------------------------------------------------------


@pytest.mark.parametrize(("l2", "before"), [("32", ()), ("pae", (f"vmrun {CONTROL_PAGE:x}", "vmmcall"))])
def test_invlpg_of_an_l2_with_pae_tables_stops_the_host(l2: str, before: tuple[str, ...]) -> None:
    """L1's root of four levels is kept, and INVLPG walks it as if it were of three.

    An L2 with PAE paging has to be entered twice: its first PDPTEs free L1's root.
    """
    world = svm("64", l2, 4, nested_paging=False, npt=0)
    runner = Runner(world.scenario(*before, f"vmrun {CONTROL_PAGE:x}", "invlpg 40000000", "rd s 4 40000000"))
    *_, last = runner.results()
    assert last.text == "invlpg 40000000"
    assert last.outcome.kind is OutcomeKind.HOST_DIED
    assert last.outcome.words == [str(assertions()[ROOT])]
    assert last.events[-1] == ev.kvm_assertion(ROOT, "BUG_ON", assertions()[ROOT].condition)
    assert runner.machine.kvm.fired == {ROOT: 1}
    assert runner.machine.execute(ops.Nop()).kind is OutcomeKind.HOST_DIED, "nothing runs any more"
