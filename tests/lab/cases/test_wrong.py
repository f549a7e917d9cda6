"""A wrong run, once more and recorded: to its end, or as far as the MMU goes."""

from __future__ import annotations

import pytest

from mmulab.check.access import WrongAccess
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.sync.oos_2008 import Oos2008, oos_2008
from mmulab.lab.cases.works import find_works
from mmulab.lab.cases.wrong import kernel_of, record_again

FREED = LINUX_6_1.with_(sync=Oos2008(inuse="freed"))


def wrong(op: int) -> WrongAccess:
    return WrongAccess(op, "rd", None, None, "gone")


def test_a_run_that_ends_is_recorded_to_its_end() -> None:
    (case,) = find_works(["sync/two-modes-64"])
    ran = record_again(case, LINUX_6_1.with_(sync=oos_2008), wrong(7), under="oos_2008")
    assert ran.what == "op"
    assert set(ran.ops) > {0, 7}
    assert ran.recording.config.kernel.sync is oos_2008


def test_a_run_that_fails_in_an_op_is_recorded_up_to_the_one_before() -> None:
    (case,) = find_works(["conformance/6.1.192/sh/fuzz-32-mix-00"])
    ran = record_again(case, FREED, wrong(24), under="freed")
    assert max(ran.ops) == 23
    says = "fuzz-32-mix-00 under freed: nothing before the failure can be shown: gone"
    with pytest.raises(InputError, match=says):
        record_again(case, FREED, wrong(30), under="freed")


def test_a_boot_is_recorded_up_to_its_record() -> None:
    (case,) = find_works(["stream/boot-686-nonpae"])
    ran = record_again(case, LINUX_6_1, wrong(99), under="6.1")
    assert (ran.what, list(ran.ops)) == ("record", [99])
    assert ran.ops[99] == len(ran.recording.ops) - 1


def test_a_recording_names_its_kernel() -> None:
    old, new, boot = find_works(
        ["conformance/6.1.192/sh/basic-32", "conformance/6.12.117/sh/basic-32", "stream/boot-686-nonpae"]
    )
    assert kernel_of(old, None) == kernel_of(boot, None) == LINUX_6_1
    assert kernel_of(new, None) == find_kernel("6.12.117")
    assert kernel_of(new, LINUX_6_1) == LINUX_6_1
