"""Memslots: which slot holds a gfn, and what is read through them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmulab.memory.memslots import KVM_MEM_READONLY, KVM_MEMSLOT_INVALID, Memslot, Memslots

Ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8)


def build(ranges: list[tuple[int, int]]) -> tuple[Memslots[Memslot], list[Memslot]]:
    """Add those ranges that overlap none before them; return the space and what it should hold."""
    slots: Memslots[Memslot] = Memslots()
    kept: list[Memslot] = []
    for number, (base, npages) in enumerate(ranges):
        taken = {gfn for s in kept for gfn in range(s.base_gfn, s.base_gfn + s.npages)}
        clash = bool(taken & set(range(base, base + npages)))
        assert slots.overlaps(base, npages, id=number) == clash
        if not clash:
            kept.append(Memslot(number, base, npages, 100 + base))
            slots.replace(None, kept[-1])
    return slots, kept


@given(Ranges, st.lists(st.integers(0, 75), min_size=1, max_size=30))
def test_lookup_finds_the_slot_that_holds_the_gfn(ranges: list[tuple[int, int]], gfns: list[int]) -> None:
    slots, kept = build(ranges)
    assert [s.base_gfn for s in slots.slots] == sorted(s.base_gfn for s in kept)
    for gfn in gfns:
        holders = [s for s in kept if s.base_gfn <= gfn < s.base_gfn + s.npages]
        assert slots.lookup(gfn) is (holders[0] if holders else None)
        assert [s for s in kept if gfn in s] == holders


@given(Ranges, st.data())
def test_what_was_taken_out_is_found_no_more(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    slots, kept = build(ranges)
    if not kept:
        return
    gone = data.draw(st.sampled_from(kept))
    assert slots.lookup(gone.base_gfn) is gone
    new = Memslot(gone.id, gone.base_gfn + 1000, gone.npages, 7)
    slots.replace(gone, new)
    assert slots.lookup(gone.base_gfn) is None
    assert slots.lookup(new.base_gfn) is slots.by_id(gone.id) is new


def test_a_slot_does_not_overlap_itself() -> None:
    slots, _ = build([(10, 5)])
    assert not slots.overlaps(12, 5, id=0)
    assert slots.overlaps(12, 5, id=1)
    assert not slots.overlaps(15, 5, id=1)
    assert slots.by_id(1) is None


def test_the_spaces_generations_never_meet() -> None:
    """``kvm_swap_active_memslots`` adds the number of spaces, so each keeps its own residue."""
    assert [Memslots[Memslot](as_id).generation for as_id in (0, 1)] == [0, 1]


def test_a_slot_says_what_its_flags_say() -> None:
    assert Memslot(0, 0, 1, 0, flags=KVM_MEM_READONLY).readonly
    assert not Memslot(0, 0, 1, 0, flags=KVM_MEM_READONLY).invalid
    assert Memslot(0, 0, 1, 0, flags=KVM_MEMSLOT_INVALID).invalid
    assert Memslot(0, 8, 4, 100).frame(11) == 103


def test_reading_crosses_slots_but_no_hole() -> None:
    memory = bytearray(0x4000)
    memory[0x1FFE:0x2000] = b"\x11\x22"
    memory[0x3000:0x3002] = b"\x33\x44"
    slots: Memslots[Memslot] = Memslots()
    slots.replace(None, Memslot(0, 0x10, 1, 1))
    slots.replace(None, Memslot(1, 0x11, 1, 3))
    view = memoryview(memory)
    assert slots.read(view, 0x10FFE, 4) == 0x44332211
    assert slots.read(view, 0x11000, 2) == 0x4433
    assert slots.read(view, 0x11FFE, 4) is None
    assert slots.read(view, 0x0FFFE, 4) is None
    assert slots.read(view, 0x12000, 1) is None


class Counted(Memslot):
    """A slot that counts how often anybody asks where it begins."""

    __slots__ = ()
    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name == "base_gfn":
            Counted.asked += 1
        return super().__getattribute__(name)


def test_a_slot_among_thousands_is_found_by_halving() -> None:
    slots: Memslots[Counted] = Memslots()
    for number in range(4096):
        assert not slots.overlaps(2 * number, 1, number)
        slots.replace(None, Counted(number, 2 * number, 1, 0))
    for ask in (
        lambda: slots.lookup(4001 * 2),
        lambda: slots.by_id(77),
        lambda: slots.overlaps(10, 1, 4096),
        lambda: slots.replace(slots.by_id(5), Counted(5, 9000, 1, 0)),
    ):
        Counted.asked = 0
        ask()
        assert Counted.asked <= 4 * 13


def test_put_back_slots_are_found_by_number_too() -> None:
    slots, kept = build([(10, 5), (20, 5)])
    slots.replace_all([kept[1]], generation=8)
    assert (slots.by_id(0), slots.by_id(1), slots.generation) == (None, kept[1], 8)
    assert slots.lookup(12) is None
    assert slots.lookup(22) is kept[1]
