"""Kernels: found by name, changed by behaviours, refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab.errors import DesignError, InputError
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import KERNELS, LINUX_6_1, LINUX_6_12, find_kernel, nearest_recorded, recorded_kernel
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.history import find_role_version

KVM = Path(__file__).parents[2] / "mmulab" / "kvm"


def test_a_release_and_its_series_name_the_same() -> None:
    assert find_kernel("6.1") is find_kernel("6.1.192") is LINUX_6_1
    assert find_kernel("6.12") is find_kernel("6.12.117") is LINUX_6_12
    assert str(LINUX_6_12) == "6.12.117"


def test_the_two_differ_in_every_behaviour() -> None:
    assert LINUX_6_12.changes_from(LINUX_6_1) == {
        name: not c.removed for name, c in CHANGES.items() if c.release
    }
    assert LINUX_6_1.changes_from(LINUX_6_1) == {}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=str)
def test_a_kernels_role_word_is_the_historys(kernel: Kernel) -> None:
    version = find_role_version(kernel.name)
    assert version.layout is kernel.design.layout
    assert version.settled


def test_behaviours_follow_the_name() -> None:
    kernel = find_kernel("6.12+unprotect_on_reinjection-dummy_root")
    assert kernel.name == "6.12.117+unprotect_on_reinjection-dummy_root"
    assert kernel.changes_from(LINUX_6_12) == {"unprotect_on_reinjection": True, "dummy_root": False}
    assert find_kernel(kernel.name) == kernel


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "kernel '': unknown; the kernels are 6.1.192, 6.12.117"),
        ("6.99", "kernel '6.99': unknown"),
        ("6.12.118", "kernel '6.12.118': unknown"),
        ("6.12+", "kernel '6.12+': unknown"),
        ("6.12+nothing", "behaviour 'nothing': unknown; the behaviours are invalidate_syncs_in_place, "),
        ("6.12+dummy_root", "behaviour dummy_root is on already; leave it out"),
        ("6.1-dummy_root", "behaviour dummy_root is off already; leave it out"),
        ("6.1+dummy_root-dummy_root", "both +dummy_root and -dummy_root; leave one out"),
        ("6.1+dummy_root junk", "expected +NAME or -NAME behind 6.1"),
        ("none.py:KERNEL", "kernel 'none.py:KERNEL': none.py: no such file"),
    ],
)
def test_what_no_kernel_is(name: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        find_kernel(name)


def test_a_kernel_of_the_users(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from mmulab.kvm.kernels import LINUX_6_12\n"
        "from mmulab.kvm.roles.design import DESIGNS\n"
        "KERNEL = LINUX_6_12.with_(name='mine', design=DESIGNS['glevel'])\n"
        "NUMBER = 5\n"
    )
    kernel = find_kernel(f"{own}:KERNEL-dummy_root")
    assert kernel.name == "mine-dummy_root"
    assert kernel.design is DESIGNS["glevel"]
    with pytest.raises(InputError, match=r"NUMBER is no Kernel"):
        find_kernel(f"{own}:NUMBER")
    with pytest.raises(InputError, match=r"has no OTHER"):
        find_kernel(f"{own}:OTHER")


def test_a_design_in_a_kernel_of_the_users_stands_behind_the_border(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from mmulab.kvm.kernels import LINUX_6_1\n"
        "from mmulab.kvm.roles.design import RoleDesign\n"
        "class Fails(RoleDesign):\n"
        "    id, name = 'F', 'fails'\n"
        "    def child(self, parent, *, direct, access, quadrant): return None\n"
        "class Works(RoleDesign):\n"
        "    id, name = 'W', 'works'\n"
        "FAILS, WORKS = LINUX_6_1.with_(design=Fails()), LINUX_6_1.with_(design=Works())\n"
    )
    assert find_kernel(f"{own}:WORKS").design.reference == f"{own}:Works"
    with pytest.raises(DesignError, match=r"own.py:Fails': Fails.child: .*None"):
        find_kernel(f"{own}:FAILS")


def test_a_recording_says_its_kernel() -> None:
    text = "6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"
    assert recorded_kernel(text) is LINUX_6_1
    assert recorded_kernel("6.12.117-custom") is LINUX_6_12
    with pytest.raises(InputError, match=r"kernel '6\.12\.107': unknown; recordings of 6\.1\.192"):
        recorded_kernel("6.12.107")
    assert {recorded_kernel(kernel.name).name for kernel in KERNELS.values()} == set(KERNELS)


def test_no_file_but_the_kernels_compares_versions() -> None:
    """The engine asks for behaviours; a release stands in sources and in the history of layouts only."""
    asks = re.compile(r"""(==|<=|>=|<|>)\s*["'(]*6[.,]\s*1""")
    for path in KVM.rglob("*.py"):
        if path.name not in ("kernels.py", "history.py"):
            assert not asks.search(path.read_text()), path


@pytest.mark.parametrize(
    ("kernel", "nearest"),
    [
        (LINUX_6_12, "6.12.117"),
        (find_kernel("6.12+unprotect_on_reinjection"), "6.12.117"),
        (LINUX_6_1, "6.1.192"),
        (LINUX_6_12.with_(name="mine"), "6.1.192"),
    ],
    ids=str,
)
def test_a_kernel_is_shown_with_the_recordings_of_what_it_was_made_of(kernel: Kernel, nearest: str) -> None:
    assert nearest_recorded(kernel) == nearest
