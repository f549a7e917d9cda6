"""Recordings under another policy: what is right, wrong and undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mmulab import paths
from mmulab.conform.recording import KernelRecording, read_recording
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Vcpu
from mmulab.kvm.sync.unsync_children import UnsyncChildren
from mmulab.kvm.sync.write_protect import write_protect
from mmulab.lab.sync.judge import judge_recorded

PROTECTED = LINUX_6_1.with_(sync=write_protect)


def recorded(name: str) -> KernelRecording:
    return read_recording(paths.data(f"conformance/6.1.192/{name}.jsonl.xz"))


def test_the_recorded_kernel_agrees_with_itself() -> None:
    recording = recorded("sh/pt-write-unsync-64")
    judged = judge_recorded(recording, LINUX_6_1)
    assert judged.wrong is None
    assert judged.judged == judged.ops == len(recording.ops)


def test_a_fresh_translation_is_allowed_where_a_stale_one_was_recorded() -> None:
    judged = judge_recorded(recorded("sh/pt-write-unsync-64"), PROTECTED)
    assert judged.wrong is None


def test_an_access_that_the_tables_confirm_is_right_whatever_was_recorded() -> None:
    recording = recorded("sh/basic-64")
    at = next(i for i, op in enumerate(recording.ops) if op.text.startswith("rd") and "rax" in op.outcome)
    other = {**recording.ops[at].outcome, "rax": recording.ops[at].outcome["rax"] ^ 1}
    forged = [*recording.ops[:at], replace(recording.ops[at], outcome=other), *recording.ops[at + 1 :]]
    assert judge_recorded(replace(recording, ops=tuple(forged)), LINUX_6_1).wrong is None


def test_an_op_that_ends_otherwise_is_wrong() -> None:
    recording = recorded("sh/mode-switch")
    at = next(i for i, op in enumerate(recording.ops) if op.text.startswith("cr"))
    ops = list(recording.ops)
    ops[at] = replace(ops[at], outcome={"out": "shutdown"})
    judged = judge_recorded(replace(recording, ops=tuple(ops)), LINUX_6_1)
    assert judged.wrong is not None
    assert (judged.wrong.op, judged.wrong.wanted) == (recording.ops[at].index, "shutdown")
    assert judged.judged == at < judged.ops


class NoSync(UnsyncChildren):
    """A flush compares nothing."""

    def sync_roots(self, vcpu: Vcpu, roots: Sequence[ShadowPage], *, everything: bool) -> None:
        return None


def test_a_write_to_cr3_that_syncs_nothing_is_found() -> None:
    """At op 14 the guest sees what it ought to, but from the wrong page."""
    judged = judge_recorded(recorded("sh/pt-write-unsync-64"), LINUX_6_1.with_(sync=NoSync()))
    assert judged.wrong is not None
    assert (judged.wrong.op, judged.wrong.expected, judged.wrong.reached) == (14, 0x111000, 0x102000)


def test_an_invlpg_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmulab.kvm.exits.kvm_mmu_invlpg", lambda vcpu, gva: None)
    judged = judge_recorded(recorded("sh/pt-write-unsync-64"), LINUX_6_1)
    assert judged.wrong is not None
    assert (judged.wrong.op, judged.wrong.expected, judged.wrong.reached) == (18, None, 0x103000)


@pytest.mark.parametrize(
    "name",
    [
        "sh/pt-write-unsync-64",
        "sh/fuzz-32-nopse-08",
        "sh/fuzz-pae-mix-20",
        "sh/efer-nx-64",
        "intel-sh/cr-toggles-32",
        "nested57/nested-64-l2-64",
        "nested-ept/ept-fuzz-noad-12",
        "nested-ept/ept-idt-vectoring-noad",
        "nested-noept-shadow/noept-64-l2-64",
    ],
)
def test_the_oracle_alone_allows_what_linux_does(name: str) -> None:
    judged = judge_recorded(recorded(name), LINUX_6_1, as_recorded=False)
    assert judged.wrong is None


@pytest.mark.parametrize(
    "name", ["sh/fuzz-pae-mix-20", "nested48/nested-fuzz-32-00", "nested-ept/ept-fuzz64-ad-02"]
)
def test_write_protect_is_right_where_the_real_guest_used_what_was_gone(name: str) -> None:
    judged = judge_recorded(recorded(name), PROTECTED)
    assert judged.wrong is None
