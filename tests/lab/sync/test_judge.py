"""Recordings under another policy: what is right, wrong and undecided."""

from __future__ import annotations

from dataclasses import replace

from mmulab.conform.recording import Recording, read_recording
from mmulab.kvm.kernel import LINUX_6_1
from mmulab.kvm.sync.write_protect import write_protect
from mmulab.lab import paths
from mmulab.lab.sync.judge import judge_recorded

PROTECTED = LINUX_6_1.with_(sync=write_protect)


def recorded(name: str) -> Recording:
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
    assert judge_recorded(replace(recording, ops=forged), LINUX_6_1).wrong is None


def test_an_op_that_ends_otherwise_is_wrong() -> None:
    recording = recorded("sh/mode-switch")
    at = next(i for i, op in enumerate(recording.ops) if op.text.startswith("cr"))
    ops = list(recording.ops)
    ops[at] = replace(ops[at], outcome={"out": "shutdown"})
    judged = judge_recorded(replace(recording, ops=ops), LINUX_6_1)
    assert judged.wrong is not None
    assert (judged.wrong.op, judged.wrong.wanted) == (recording.ops[at].index, "shutdown")
    assert judged.judged == at < judged.ops
