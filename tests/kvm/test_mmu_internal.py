"""Page sizes as the kernel's constants have them."""

from __future__ import annotations

import pytest

from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT, KVM_PAGES_PER_HPAGE, gfn_round_for_level


def test_a_page_of_each_size_has_512_of_the_next() -> None:
    """``KVM_HPAGE_GFN_SHIFT`` and ``KVM_PAGES_PER_HPAGE``, Linux 6.1 ``arch/x86/include/asm/kvm_host.h``."""
    assert KVM_HPAGE_GFN_SHIFT[1:4] == (0, 9, 18)
    assert KVM_PAGES_PER_HPAGE[1:4] == (1, 512, 512 * 512)


def test_level_0_is_no_size() -> None:
    with pytest.raises(ValueError, match="negative shift"):
        0x1234 >> KVM_HPAGE_GFN_SHIFT[0]


@pytest.mark.parametrize(("level", "first"), [(1, 0x12345FFF), (2, 0x12345E00), (3, 0x12340000)])
def test_a_gfn_is_rounded_to_the_first_of_its_page(level: int, first: int) -> None:
    assert gfn_round_for_level(0x12345FFF, level) == first
