"""The guests that a search goes round: every way of paging, changes of it, both vendors, nested ones."""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.check.guest import Guest
from mmulab.scenario.scenario import TDP_PARAMETER

RING = 0x400
"""Entries of a dirty ring: more than a trial fills."""


def _tdp(vendor: str, **host: int) -> dict[str, int]:
    return {TDP_PARAMETER[vendor]: 1, **host}


def _guests() -> Iterator[Guest]:
    for mode in ("32", "pae", "64", "57"):
        yield Guest(name=f"shadow-{mode}", mode=mode)
    yield Guest(name="shadow-64-smp", mode="64", vcpus=2)
    yield Guest(name="shadow-pae-smp", mode="pae", vcpus=2)
    yield Guest(name="shadow-64-thp", mode="64", large=True, thp=True, host={"nx_huge_pages": 1})
    yield Guest(name="shadow-32-smm", mode="32", smm=True)
    yield Guest(name="shadow-64-smm", mode="64", smm=True, vcpus=2)
    yield Guest(name="shadow-np", mode="np")
    yield Guest(name="shadow-host32", mode="pae", host={"x86_64": 0, "virt_bits": 48, "tdp_mmu": 0})
    yield Guest(name="npt-host32", mode="32", host=_tdp("amd", x86_64=0, tdp_mmu=0))
    for mode in ("32", "64"):
        yield Guest(name=f"intel-shadow-{mode}", mode=mode, vendor="intel", cpu={"pcid": 1, "invpcid": 1})
    yield Guest(name="intel-shadow-64-smp", mode="64", vendor="intel", vcpus=2, cpu={"pcid": 1, "invpcid": 1})
    yield Guest(name="npt-64", mode="64", host=_tdp("amd", tdp_mmu=0))
    yield Guest(name="npt-64-tdpmmu", mode="64", vcpus=2, host=_tdp("amd"))
    yield Guest(name="npt-thp", mode="np", large=True, thp=True, host=_tdp("amd", nx_huge_pages=1))
    yield Guest(name="npt-collapse", mode="64", large=True, host=_tdp("amd"))
    for name, host in (("64", {"tdp_mmu": 0}), ("pml", {"pml": 1}), ("noad", {"eptad": 0})):
        host = _tdp("intel", unrestricted_guest=1, **host)
        yield Guest(name=f"ept-{name}", mode="64", vendor="intel", host=host)
    yield Guest(name="shadow-64-clear", mode="64", vcpus=2, manual_dirty=True)
    yield Guest(name="npt-clear", mode="64", large=True, thp=True, manual_dirty=True, host=_tdp("amd"))
    yield Guest(name="ept-clear", mode="64", vendor="intel", manual_dirty=True, host=_tdp("intel", pml=1))
    yield Guest(name="shadow-64-ring", mode="64", vcpus=2, dirty_ring=RING)
    yield Guest(name="npt-ring", mode="64", vcpus=2, dirty_ring=RING, host=_tdp("amd"))
    pairs = (("64", ("64", "pae")), ("64", ("32", "np")), ("32", ("32", "pae")), ("pae", ("pae", "32")))
    for l1, l2 in pairs:
        name = f"{l1}-" + "+".join(l2)
        yield Guest(name=f"nested-npt-{name}", mode=l1, l2=l2, nested_paging=True, host=_tdp("amd"))
        yield Guest(name=f"nested-nonpt-{name}", mode=l1, l2=l2, host=_tdp("amd"))
    five = _tdp("amd", virt_bits=57)
    for l1 in ("32", "pae", "64"):
        yield Guest(name=f"nested-npt-5-{l1}", mode=l1, l2=("np", "32"), nested_paging=True, host=five)
    yield Guest(name="nested-npt-5-57", mode="57", l2=("np",), nested_paging=True, host=five)
    host = _tdp("amd", tdp_mmu=0, nx_huge_pages=1)
    l2 = ("np", "32")
    yield Guest(
        name="nested-npt-nx-32", mode="32", l2=l2, nested_paging=True, large=True, thp=True, host=host
    )
    yield Guest(name="nested-shadow-pcid", mode="64", l2=("64", "pae"), cpu={"pcid": 1})
    yield Guest(name="nested-shadow-64", mode="64", l2=("64", "32"))
    yield Guest(name="nested-shadow-pae", mode="pae", l2=("pae", "32"))
    two = _tdp("amd")
    yield Guest(name="nested-npt-smp", mode="64", l2=("64", "64"), nested_paging=True, vcpus=2, host=two)
    for logged in (0, 1):
        host = _tdp("intel", pml=logged, unrestricted_guest=1)
        for inner in ("64", "32", "pae", "np"):
            name = f"nested-ept-{'pml-' if logged else ''}{inner}"
            yield Guest(name=name, mode="64", vendor="intel", l2=(inner,), nested_paging=True, host=host)
    yield Guest(name="nested-noept-64", mode="64", vendor="intel", l2=("64", "pae"), host=_tdp("intel"))
    pml = _tdp("intel", pml=1)
    yield Guest(name="nested-noept-pml", mode="64", vendor="intel", l2=("64", "32"), host=pml)
    yield Guest(name="nested-vmx-shadow", mode="64", vendor="intel", l2=("64", "pae"))
    yield from _switching()


def _switching() -> Iterator[Guest]:
    """Guests that change their way of paging; in VMX operation L1 cannot, and L2 alone does."""
    yield Guest(name="shadow-modes", mode="64", modes=("64", "pae", "32"))
    yield Guest(name="shadow-modes-smp", mode="32", modes=("pae", "64"), vcpus=2)
    yield Guest(name="intel-shadow-modes", mode="pae", vendor="intel", modes=("32", "64"))
    yield Guest(name="npt-modes", mode="64", modes=("pae", "32"), host=_tdp("amd", tdp_mmu=0))
    ept = _tdp("intel", unrestricted_guest=1)
    yield Guest(name="ept-modes", mode="64", vendor="intel", modes=("pae", "32"), host=ept)
    l2 = ("64", "pae")
    yield Guest(name="nested-shadow-modes", mode="64", modes=("pae",), l2=l2)
    yield Guest(name="nested-nonpt-modes", mode="64", modes=("32",), l2=l2, host=_tdp("amd"))
    two = ("64", "32")
    yield Guest(
        name="nested-npt-modes", mode="64", modes=("pae",), l2=two, nested_paging=True, host=_tdp("amd")
    )
    l2 = ("pae", "32")
    yield Guest(
        name="nested-ept-modes", mode="64", vendor="intel", modes=("64",), l2=l2, nested_paging=True, host=ept
    )


GUESTS: dict[str, Guest] = {guest.name: guest for guest in _guests()}
"""The guests that a search goes round, by name."""
