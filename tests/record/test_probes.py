"""What is traced: every event that a recording of an AMD host can have."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.kernels import KERNELS
from mmulab.record.probes import event_lines, probe_lines


def test_every_function_has_a_probe_with_the_events_own_fields() -> None:
    probed: dict[str, list[str]] = {}
    for line in probe_lines():
        event, _, *arguments = line.split()
        assert [argument.split("=")[0] for argument in arguments] == list(ev.EVENT_TYPES[event]._fields)  # type: ignore[attr-defined]
        probed.setdefault(event, []).append(line)
    assert list(probed) == [kind.__name__ for kind in ev.FUNCTIONS]


def test_each_kernels_own_functions_are_probed() -> None:
    functions = {line.split()[1] for line in probe_lines()}
    for kernel in KERNELS.values():
        names = {kernel.events.name(kind) for kind in ev.FUNCTIONS}
        assert names - functions <= {"__kvm_mmu_unprotect_gfn_and_retry"}  # its arguments are others


def test_tracepoints_have_their_groups() -> None:
    assert "kvmmmu/kvm_mmu_set_spte" in event_lines("amd")
    assert "kvm/kvm_exit" in event_lines("amd")
    assert "kvm/kvm_nested_vmenter" not in event_lines("amd")
    assert "kvm/kvm_nested_vmenter" in event_lines("intel")
