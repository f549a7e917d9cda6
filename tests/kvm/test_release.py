"""Releases as distributions write them: what each is taken for, and what its name leaves open."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.bug import Bug
from mmulab.kvm.kernels import spelled
from mmulab.kvm.release import find_release, read_release_name
from mmulab.kvm.roles.history import find_role_version

DEBIAN = "Debian's ABI name, which does not tell the stable release"
UBUNTU = "an ABI name as Ubuntu's, which does not tell the stable release"
VENDOR = "backports unknown"


@pytest.mark.parametrize(
    ("text", "taken", "left_open"),
    [
        ("6.1", "6.1", ""),
        ("v6.1.192", "6.1.192", ""),
        ("2.6.32.9", "2.6.32.9", ""),
        ("6.1.0", "6.1.0", ""),
        ("6.1.192-2", "6.1.192", ""),
        ("6.12.117-1~deb12u1", "6.12.117", ""),
        ("6.12.48+deb13-amd64", "6.12.48", ""),
        ("6.1.0-31-amd64", "6.1", DEBIAN),
        ("6.1.0-31-cloud-amd64", "6.1", DEBIAN),
        ("6.1.0-0.deb11.21-amd64", "6.1", DEBIAN),
        ("5.10.0-28-686-pae", "5.10", DEBIAN),
        ("5.15.0-91-generic", "5.15", UBUNTU),
        ("6.8.0-1015-aws", "6.8", UBUNTU),
        ("6.8.12-4-pve", "6.8.12", ""),
        ("5.14.0-427.el9", "5.14", VENDOR),
        ("5.14.0-427.13.1.el9_4.x86_64", "5.14", VENDOR),
        ("5.14.0-427.13.1.el9_4.x86_64+rt", "5.14", VENDOR),
        ("3.10.0-1160.el7.x86_64", "3.10", VENDOR),
        ("5.4.17-2136.338.4.2.el8uek.x86_64", "5.4.17", VENDOR),
        ("6.1.112-122.189.amzn2023.x86_64", "6.1.112", VENDOR),
        ("6.4.0-150600.23.47-default", "6.4", VENDOR),
        ("6.17.5-200.fc42.x86_64", "6.17.5", ""),
        ("6.17.0-0.rc3.31.fc44.x86_64", "6.17-rc3", ""),
        ("6.12.1-arch1-1", "6.12.1", ""),
        ("6.12-rc3", "6.12-rc3", ""),
        ("6.12.0-rc3+", "6.12-rc3", ""),
        ("6.12~rc6-1~exp1", "6.12-rc6", ""),
        ("6.12.0-rc3-00012-g0123abcd-dirty", "6.12-rc3", ""),
        ("6.6.87.2-microsoft-standard-WSL2", "6.6.87", ""),
    ],
)
def test_what_a_name_is_taken_for(text: str, taken: str, left_open: str) -> None:
    release = find_release(text)
    assert (release.taken_as, release.open) == (taken, left_open)


@pytest.mark.parametrize(
    "text", ["", "6", "6.x", "6.01", "6.1.01", "amd64", "6.1-rc", "6.1 192", "6." + "9" * 90]
)
def test_what_is_no_release(text: str) -> None:
    assert read_release_name(text) is None
    with pytest.raises(InputError, match="expected numbers"):
        find_release(text)


@pytest.mark.parametrize(
    ("name", "kernel", "said"),
    [
        ("6.1", "6.1", ""),
        ("6.12.117+B2-dummy_root", "6.12.117+B2-dummy_root", ""),
        ("own.py:KERNEL", "own.py:KERNEL", ""),
        ("6.1.192-2", "6.1.192", "kernel 6.1.192-2: taken as 6.1.192"),
        ("6.1.0-31-amd64", "6.1.192", f"kernel 6.1.0-31-amd64: {DEBIAN}; taken as 6.1.192"),
        ("6.1.55", "6.1.192", "kernel 6.1.55: not recorded; taken as 6.1.192"),
        ("6.12.1-arch1-1", "6.12.117", "kernel 6.12.1-arch1-1: 6.12.1 was not recorded; taken as 6.12.117"),
        (
            "6.12.48+deb13-amd64+B2",
            "6.12.117+B2",
            "kernel 6.12.48+deb13-amd64: 6.12.48 was not recorded; taken as 6.12.117",
        ),
        ("6.12-dumy_root", "6.12-dumy_root", ""),  # a behaviour misspelt is no distribution
        ("nonsense", "nonsense", ""),
    ],
)
def test_which_kernel_stands_for_a_release(name: str, kernel: str, said: str) -> None:
    assert spelled(name) == (kernel, said)


def test_a_series_without_a_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"427\.el9' \(backports unknown, taken as 5\.14\): unknown"):
        spelled("5.14.0-427.el9")


@pytest.mark.parametrize(
    ("name", "as_", "settled", "note"),
    [
        ("6.1.0-31-amd64", "6.1", True, f"{DEBIAN}, taken as 6.1"),
        ("6.1.192-2", "6.1.192", True, "taken as 6.1.192"),
        ("5.14.0-427.el9_4.x86_64", "5.14", False, "backports unknown, taken as 5.14"),
        (
            "5.15.0-91-generic",
            "5.15",
            False,
            f"{UBUNTU}, taken as 5.15; 5.15.222 and later have another word",
        ),
        ("5.10.0-28-amd64", "5.10", False, f"{DEBIAN}, taken as 5.10"),
        ("5.17.0-0.rc1.1.fc36", "5.17-rc1", True, ""),
    ],
)
def test_the_role_word_of_a_distributions_kernel(name: str, as_: str, settled: bool, note: str) -> None:
    found = find_role_version(name)
    assert found.layout is find_role_version(as_).layout
    assert (found.settled, found.note) == (settled, note)


BUG = Bug(
    id="B0",
    title="",
    commit="0" * 12,
    introduced="5.11",
    fixed="6.2",
    backports={"6.1": "6.1.60"},
    mechanism="",
    breaks=(),
    source="",
)


@pytest.mark.parametrize(
    ("release", "has", "why"),
    [
        ("6.1.60-1", False, "6.1.60 has the fix"),
        ("6.1.59-1", True, "the fix came with 6.1.60"),
        ("6.1.0-31-amd64", None, f"the fix came with 6.1.60; {DEBIAN}, taken as 6.1"),
        ("5.10.0-28-amd64", False, "it came with 5.11"),
        ("5.10.0-28.el9", None, "it came with 5.11; backports unknown, taken as 5.10"),
        ("5.14.0-427.el9", None, "the fix came with 6.2; backports unknown, taken as 5.14"),
        ("6.12.0-55.el10", False, "6.2 has the fix"),
        ("6.2-rc3", None, "6.2 has the fix; whether 6.2-rc3 had that, no source says"),
        ("5.11-rc1", None, "the fix came with 6.2; whether 5.11-rc1 had that, no source says"),
        ("6.3-rc3", False, "6.2 has the fix"),
    ],
)
def test_a_bug_of_a_distributions_kernel(release: str, has: bool | None, why: str) -> None:
    assert BUG.affects(release) == (has, why)
