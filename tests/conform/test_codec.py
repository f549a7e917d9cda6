"""Events as recordings write them: nothing is lost on the way in or out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.conform.codec import EVENT_NAMES, canonical, decode_event, encode_event
from mmulab.conform.recording import read_lines
from mmulab.conform.values import (
    FRAME_HOST,
    FRAME_SP,
    PFERR,
    PFN_NOSLOT,
    SPTE,
    FrameMap,
    frame_str,
    pferr_letters,
)

SAMPLE = [
    ("amd", "sh/mode-switch"),
    ("amd", "sh/fuzz-57-thp-14"),
    ("amd", "sh/memslot-64"),
    ("amd", "sh/efer-nx-pae"),
    ("amd", "sh/os-32-02"),
    ("amd", "tdp0/dirtylog-64"),
    ("amd", "tdp1/memslot-64"),
    ("amd", "nested48/nested-fuzz-64-04"),
    ("amd", "nested-nonpt/nested-nonpt-32-l2-np"),
    ("intel", "intel-sh/fuzz-32-mix-00"),
    ("intel", "intel-sh/fuzz-64-mix-12"),
    ("intel", "intel-sh/cr-toggles-32"),
    ("intel", "intel-sh/mmio-64"),
    ("intel", "ept0/cr-toggles-64"),
    ("intel", "ept1-host-noad/dirtylog-manual-thp-64"),
    ("intel", "nested-ept/ept-vmfunc-ad"),
    ("intel", "nested-ept/ept-idt-vectoring-noad"),
    ("intel", "nested-ept/ept-misconfig-eptp-ad"),
    ("amd", "smm/smm-fuzz-64-mix-01"),
    ("amd", "age/age-pae"),
    ("intel", "intel-ept1-pml/dirtyring-64"),
]
"""Recordings that between them have every kind of event."""
IN_NO_RECORDING = {"kvm_dirty_ring_exit"}


def records(root: Path, name: str) -> list[dict[str, object]]:
    """All recorded events of one file, as JSON."""
    sets = (root / "data" / found / "6.1.192" for found in ("conformance", "conformance-more"))
    (path,) = (path for path in (folder / f"{name}.jsonl.xz" for folder in sets) if path.exists())
    lines = read_lines(path)
    return [event for line in lines[1:-1] for event in json.loads(line)["ev"]]


@pytest.mark.parametrize(("vendor", "name"), SAMPLE)
def test_recorded_events_come_back_byte_for_byte(root: Path, vendor: str, name: str) -> None:
    for record in records(root, name):
        event = decode_event(record, vendor)
        assert json.dumps(encode_event(event, vendor)) == json.dumps(record)
        assert decode_event(encode_event(event, vendor), vendor) == event


def test_the_sample_has_every_kind_of_event(root: Path) -> None:
    """But those that no recording has."""
    kinds = Counter(str(record["e"]) for _, name in SAMPLE for record in records(root, name))
    assert set(EVENT_NAMES) - set(kinds) == IN_NO_RECORDING
    assert set(kinds) <= set(EVENT_NAMES)


def test_every_event_of_the_model_can_be_recorded() -> None:
    assert set(EVENT_NAMES.values()) == set(ev.EVENT_TYPES.values()) - set(ev.CONSOLE)


@pytest.mark.parametrize(
    ("vendor", "record", "event"),
    [
        ("amd", {"e": "walk", "addr": "0x1800", "err": "UF"}, ev.kvm_mmu_pagetable_walk(0x1800, 0x14)),
        (
            "amd",
            {"e": "set_spte", "gfn": "0x100", "l": 1, "i": 2, "s": {"v": "0xe67", "f": "0x100"}, "p": "r-u"},
            ev.kvm_mmu_set_spte(0x100, 0x100E67, 1, 16, r=True, x=False, u=1),
        ),
        (
            "intel",
            {"e": "tdp_spte", "gfn": "0x0", "l": 4, "old": {"v": "0x0"}, "new": {"v": "0x807", "f": "sp"}},
            ev.kvm_tdp_mmu_spte_changed(0, 0, 4, 0, FRAME_SP << 12 | 0x807),
        ),
        (
            "amd",
            {"e": "tdp_spte", "gfn": "0x38", "l": 1, "old": {"v": "0x0"}, "new": {"v": "0x0"}, "as": 1},
            ev.kvm_tdp_mmu_spte_changed(1, 0x38, 1, 0, 0),
        ),
        (
            "intel",
            {"e": "kvm_exit", "r": "pf", "rip": "0x1800", "err": "0x2", "addr": "0x8", "idtv": "0x80000b0e"},
            ev.kvm_exit("pf", 0x1800, 2, 8, None, 0x80000B0E),
        ),
        (
            "amd",
            {"e": "kvm_exit", "r": "ioio", "rip": "0x1638", "info1": "0xe0010"},
            ev.kvm_exit("ioio", 0x1638, None, None, 0xE0010),
        ),
        ("amd", {"e": "kvm_inj_exception", "vec": 6}, ev.kvm_inj_exception(6, None, reinjected=False)),
        ("amd", {"e": "c_free_roots", "mask": 1}, ev.kvm_mmu_free_roots(1)),
        ("amd", {"e": "c_unprotect", "gfn": "0x3000"}, ev.kvm_mmu_unprotect_page(0x3000)),
    ],
)
def test_decoding_by_example(vendor: str, record: dict[str, object], event: ev.Event) -> None:
    assert decode_event(record, vendor) == event
    assert encode_event(event, vendor) == record


@pytest.mark.parametrize(
    "record",
    [
        {"e": "walked", "addr": "0x0", "err": ""},
        {"e": "walk", "addr": "0x0"},
        {"e": "walk", "addr": "0x0", "err": "X"},
        {"e": "walk", "addr": 5, "err": ""},
        {"addr": "0x0"},
    ],
)
def test_what_is_no_event_is_refused(record: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode_event(record, "amd")


@given(st.integers(0, (1 << 48) - 1))
def test_error_codes_come_back(code: int) -> None:
    assert PFERR.decode(pferr_letters(code)) == code


@given(st.integers(0, (1 << 64) - 1))
def test_sptes_come_back(spte: int) -> None:
    assert SPTE.decode(SPTE.encode(spte)) == spte


def test_frames_of_a_machine_get_their_canonical_numbers() -> None:
    frames = FrameMap(backing=0x8200, backing_frames=0x100)
    assert [frames.frame(f) for f in (0x8200, 0x82FF)] == [0, 0xFF]
    assert frames.frame(5) == FRAME_SP
    assert [frames.frame(f) for f in (0, 0x8300)] == [FRAME_HOST] * 2
    assert [frames.pfn(p) for p in (0x8201, -1, PFN_NOSLOT)] == [1, PFN_NOSLOT, PFN_NOSLOT]
    assert [frame_str(f) for f in (FRAME_HOST, PFN_NOSLOT)] == ["host", "noslot"]


def test_canonical_events_name_no_host_address() -> None:
    frames = FrameMap(backing=0x8200, backing_frames=0x100)
    present, mmio = 0x8210E67, 0x8000002000017
    assert canonical(
        ev.kvm_mmu_set_spte(0x10, present, 1, 0x7010, True, True, -1), frames
    ) == ev.kvm_mmu_set_spte(0x10, 0x10E67, 1, 0x10, True, True, 0)
    assert canonical(ev.drop_spte(0x7FF8, present), frames) == ev.drop_spte(0xFF8, 0x10E67)
    assert canonical(ev.drop_spte(0x7FF8, mmio), frames).old_spte == mmio
    assert canonical(ev.fast_page_fault(0, 0, -1, 0, 0, 3), frames).sptep == 0
    assert canonical(ev.kvm_mmu_spte_requested(0x10, 0x8210, 1), frames).pfn == 0x10
    assert canonical(ev.mark_mmio_spte(0x7008, 1, 2, 3), frames).sptep == 8
    assert canonical(ev.kvm_mmu_split_huge_page(0, present, 2, 0), frames).spte == 0x10E67
    table = canonical(ev.kvm_tdp_mmu_spte_changed(0, 0, 4, 0, 0x3807), frames)
    assert (table.old_spte, table.new_spte) == (0, FRAME_SP << 12 | 0x807)
