"""A user's own sync policy, and the border around it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mmulab.errors import DesignError
from mmulab.kvm.sync.find import find_sync
from tests.kvm.guest import DATA, GVA, Guest

OWN = """
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.write_protect import WriteProtect

class Never(WriteProtect):
    name, summary, source = "never", "as write_protect", "here"

class Fails(WriteProtect):
    def try_to_unsync(self, kvm, slot, gfn, *, can_unsync, prefetch):
        return 1 // 0

class Silent(SyncPolicy):
    pass

class Other:
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return str(file)


def test_it_runs_and_goes_by_its_reference(own: str) -> None:
    policy = find_sync(f"{own}:Never")
    assert str(policy) == f"{own}:Never"
    assert str(pickle.loads(pickle.dumps(policy))) == str(policy)
    guest = Guest("64", sync=policy).map(GVA, DATA)
    guest.map(GVA + 0x100000, guest.table(GVA))
    guest.read(GVA)
    guest.write(GVA + 0x100FF0)
    assert guest.kvm.sync_stat["emulated_writes"] == 1


def test_what_it_raises_names_class_method_and_line(own: str) -> None:
    guest = Guest("64", sync=find_sync(f"{own}:Fails")).map(GVA, DATA)
    with pytest.raises(DesignError, match=r"sync policy .*Fails.try_to_unsync: ZeroDivisionError.*line 10"):
        guest.write(GVA)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Silent", "has no method try_to_unsync"),
        ("Other", "is no subclass of mmulab.kvm.sync.policy.SyncPolicy"),
        ("Absent", "has no Absent"),
    ],
)
def test_what_is_no_policy_is_refused(own: str, name: str, why: str) -> None:
    with pytest.raises(DesignError, match=why):
        find_sync(f"{own}:{name}")
