"""Bringing in the host's page behind a guest's."""

from __future__ import annotations

import pytest

from mmulab.kvm.host_page import access_host_page
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from tests.kvm.guest import DATA, Guest


@pytest.mark.parametrize(
    ("access", "reads", "writes"), [(0, False, False), (1, True, False), (3, True, True)]
)
def test_a_mapping_allows_what_it_says(access: int, reads: bool, writes: bool) -> None:
    guest = Guest("np")
    frame = guest.hpa(DATA) >> 12
    guest.machine.memory.protect(frame, frame + 1, access)
    assert access_host_page(guest.kvm, frame) == reads
    assert access_host_page(guest.kvm, frame, write=True) == writes
    assert access_host_page(guest.kvm, frame + 1, write=True)


@pytest.mark.parametrize(("kernel", "clean"), [(LINUX_6_1, True), (LINUX_6_12, False)], ids=str)
def test_a_page_that_comes_back_to_be_read_is_clean_before_6_11(kernel: Kernel, clean: bool) -> None:
    guest = Guest("np", behaviours=kernel.behaviours)
    memory, frame = guest.machine.memory, guest.hpa(DATA) >> 12
    memory.swap_out(frame)
    assert access_host_page(guest.kvm, frame)
    assert (frame in memory.swapped, frame in memory.clean) == (False, clean)
    assert access_host_page(guest.kvm, frame, write=True)
    assert not memory.is_special(frame)


def test_a_page_that_comes_back_to_be_written_is_writable() -> None:
    guest = Guest("np")
    memory, frame = guest.machine.memory, guest.hpa(DATA) >> 12
    memory.swap_out(frame)
    assert access_host_page(guest.kvm, frame, write=True)
    assert not memory.is_special(frame)
