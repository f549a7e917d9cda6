"""Real mode on Intel without EPT: who executes it (Linux 6.1 ``vmx.c``, ``handle_invalid_guest_state``)."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.vmx.real_mode import emulation_required
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner, run
from mmulab.x86.regs import X86_CR0_PE


@pytest.mark.parametrize(
    ("vendor", "host", "required"),
    [("amd", {}, False), ("intel", {}, True), ("intel", {"ept": 1, "unrestricted_guest": 1}, False)],
)
def test_only_without_ept_and_only_in_real_mode(vendor: str, host: dict[str, int], required: bool) -> None:
    machine = Runner(ScenarioBuilder("np", vendor=vendor, host=host).build()).machine
    vcpu = machine.kvm.vcpus[0]
    vcpu.cr0 |= X86_CR0_PE
    assert not emulation_required(vcpu)
    vcpu.cr0 &= ~X86_CR0_PE
    assert emulation_required(vcpu) == required


def test_a_nop_is_emulated_and_nothing_else_is_modelled() -> None:
    made = ScenarioBuilder("np", vendor="intel").op("cr0 10").op("nop")
    assert run(made.build())[2].stats["insn_emulation"] == 1
    with pytest.raises(InputError, match=r"mov from memory with CR0[.]PE=0 is not modelled without EPT"):
        run(made.op("rd s 4 2000").build())
