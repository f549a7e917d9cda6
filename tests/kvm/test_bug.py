"""A bug's record and its switch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.errors import InputError
from mmulab.kvm.bug import INVARIANTS, SWITCHES, Bug, Bugs, read_release, with_bugs
from mmulab.kvm.bugs import BUGS, find_bug
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12, find_kernel

BUG = Bug(
    id="B0",
    title="",
    commit="0" * 12,
    introduced="2.6.29",
    fixed="5.16",
    backports={"5.10": "5.10.80", "2.6.32": "2.6.32.9"},
    mechanism="",
    breaks=(),
    source="",
)


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("2.6.28", False),
        ("2.6.29", True),
        ("2.6.32.8", True),
        ("2.6.32.9", False),
        ("5.10.79", True),
        ("5.10.80", False),
        ("5.15", True),
        ("5.15.0", True),
        ("5.15.200", None),
        ("5.16", False),
        ("6.1.192", False),
    ],
)
def test_which_releases_have_it(release: str, has: bool | None) -> None:
    found = BUG.affects(release)
    assert found.has is has
    assert found.why


def test_a_release_in_which_the_fix_was_read() -> None:
    read = replace(BUG, fixed="", backports={}, seen_in=("6.1.192",))
    assert read.affects("6.1.193").has is False
    for other in ("6.1.191", "6.6.100", "6.1"):
        assert read.affects(other).has is None


def test_what_no_source_says_is_not_known() -> None:
    since = replace(BUG, introduced="")
    assert since.affects("5.4.1").has is None
    assert since.affects("5.16").has is False
    assert since.affects("5.10.79").has is True  # a fix goes where the bug is
    assert since.affects("5.10.80").has is False


@pytest.mark.parametrize("text", ["", "6", "6.x", "6.1-rc3", "6.1.2.3.4", "²6.1"])
def test_what_no_release_is(text: str) -> None:
    with pytest.raises(InputError, match="expected numbers, as 5"):
        read_release(text)


def test_turned_on_and_off_by_name() -> None:
    kernel = find_kernel("6.1+B2-is_self_change_mapping")
    assert kernel.bugs.names() == ("B2",)
    assert kernel.name == "6.1.192+B2-is_self_change_mapping"
    assert find_kernel(kernel.name) == kernel
    assert kernel.toggled(B2=False).bugs == Bugs() == LINUX_6_1.bugs == LINUX_6_12.bugs
    for name, says in (("6.1-B2", "bug B2 is off already"), ("6.1+B2-B2", "both [+]B2 and -B2")):
        with pytest.raises(InputError, match=says):
            find_kernel(name)


def test_a_switch_that_is_not() -> None:
    with pytest.raises(InputError, match="bug 'B99': no switch; the switches are B1, "):
        with_bugs(Bugs(), {"B99": True})
    with pytest.raises(InputError, match="bug 'B99': unknown; the bugs are B1, "):
        find_bug("B99")


def test_the_catalogue_and_the_switches_agree() -> None:
    assert [bug.id for bug in BUGS.values() if bug.has_switch] == list(SWITCHES)
    for bug in BUGS.values():
        assert bug.title
        assert bug.mechanism
        assert bug.source
        assert set(bug.breaks) <= set(INVARIANTS)
        assert not bug.commit or len(bug.commit) == 12


def test_the_releases_of_the_catalogue_fit_together() -> None:
    for bug in BUGS.values():
        if bug.introduced and bug.fixed:
            assert read_release(bug.introduced) <= read_release(bug.fixed)
        for series, release in bug.backports.items():
            assert release.startswith(f"{series}.")
            assert not bug.introduced or bug.affects(series).has is True
            assert bug.affects(release).has is False
        for release in bug.seen_in:
            assert bug.affects(release).has is False


@pytest.mark.parametrize("kernel", [LINUX_6_1, LINUX_6_12], ids=str)
def test_the_recorded_kernels_are_affected_by_none_that_was_read_in_them(kernel: Kernel) -> None:
    """Without a switch the model is the recorded kernel: what it has it has without."""
    has = [bug.id for bug in BUGS.values() if bug.affects(kernel.name).has]
    assert not set(has) & set(SWITCHES)
