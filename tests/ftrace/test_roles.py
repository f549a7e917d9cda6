"""Which kernel printed a trace, and its roles as words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.ftrace.reader import read_text, read_trace
from mmulab.ftrace.roles import guess_kernel, read_role, role_texts
from mmulab.kvm.roles.history import find_role_version

PUBLIC = Path(__file__).parents[2] / "data/ftrace/public"


@pytest.mark.parametrize(
    ("name", "said", "roles"),
    [
        ("t02-amd-la57-npt-loop-5.x-tracecmd", "5.1 or later", False),
        ("t03-tdpmmu-getpage-stack-5.x-tracepipe", "5.4 or later", True),
        ("t04-private-memory-2M-5.19rc-wrapped", "5.11 or later, before 6.0", True),
        ("t07-1gib-page-rsvd-4.8-tracecmd", "not told by the lines", False),
    ],
)
def test_kernels_by_their_lines(name: str, said: str, roles: bool) -> None:
    guess = guess_kernel(read_trace(str(PUBLIC / f"{name}.txt")))
    assert str(guess) == said
    assert bool(guess.roles) == roles


def test_lines_of_two_kernels() -> None:
    trace = read_text(
        " a-1 [000] 1.000001: kvm_page_fault: vcpu 0 rip 0x1 address 0x2 error_code 0x2\n"
        " a-1 [000] 1.000001: kvm_page_fault: address 84d000 error_code 4\n"
    )
    assert str(guess_kernel(trace)) == "lines of 6.0 or later beside lines of before 6.0"


def test_role_words() -> None:
    trace = read_trace(str(PUBLIC / "t02-amd-la57-npt-loop-5.x-tracecmd.txt"))
    assert role_texts(trace)[0] == "1 q0 direct wux pae !nxe !wp"
    # The words that the crash utility showed for the same four pages.
    version = find_role_version("5.10")
    words = []
    for text in role_texts(trace):
        told = read_role(text, version)
        assert told is not None
        hidden = sum(version.layout.mask[name] for name in told.hidden)
        words.append((told.word, hidden))
    known = (0x791, 0x792, 0x793, 0x794)
    assert all(word & ~hidden == true & ~hidden for (word, hidden), true in zip(words, known, strict=True))
    told = read_role(0x3712, version)
    assert told is not None
    assert (told.word, told.hidden) == (0x3712, ())
