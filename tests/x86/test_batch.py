"""The compiled walk does what the walk in Python does, in every mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mmulab.x86.batch import NO_FAULT, walk_batch, walk_each
from mmulab.x86.ept import make_ept_paging
from mmulab.x86.mode import MODES, NONPAGING, PAGING_4LEVEL, PAGING_PAE
from mmulab.x86.paging import KVM_WALK, PROCESSOR, Paging, Walker, make_paging
from mmulab.x86.pferr import PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import CpuModel
from mmulab.x86.walk import Walk, walk
from tests.x86.tables import FRAMES, Access, Memory, World, random_accesses, random_world

CPUS = (
    CpuModel(vendor="intel", maxphyaddr=40, pku=True),
    CpuModel(vendor="amd", maxphyaddr=52, pku=True),
    CpuModel(vendor="amd", maxphyaddr=36, gbpages=False, pse36=False, pku=True),
)
WALKERS = (
    PROCESSOR,
    KVM_WALK,
    replace(PROCESSOR, name="emulated", rsvd_sets_p=False, marks_pdptes=True),
)
WORLDS = 12
ACCESSES = 100


def draw(mode_name: str, seed: int) -> tuple[World, list[Access]]:
    """Draw tables and accesses of both privileges, mixed."""
    rng = np.random.default_rng([seed, MODES[mode_name].root_level])
    world = random_world(rng, MODES[mode_name])
    accesses = [a for user in (False, True) for a in random_accesses(rng, world, ACCESSES, user)]
    rng.shuffle(accesses)  # type: ignore[arg-type]
    return world, accesses


def paging_of(world: World, cpu: CpuModel = CPUS[0], walker: Walker = PROCESSOR) -> Paging:
    """Return the paging configuration of a world's registers."""
    registers = world.registers
    return make_paging(registers.cr0, registers.cr4, registers.efer, cpu, walker)


def walk_python(
    world: World, paging: Paging, memory: Memory, access: Access, pdptes: list[int] | None = None
) -> Walk:
    """Make one access by the walk in Python."""
    registers = world.registers
    return walk(
        paging,
        registers.cr3,
        access.va,
        access.pfec,
        memory.load,
        memory.store,
        pdptes=pdptes,
        not_smap=access.ac,
        pkru=registers.pkru,
    )


def columns(accesses: list[Access]) -> tuple[list[int], list[int], list[bool]]:
    """Return accesses as the columns that a batch takes."""
    return [a.va for a in accesses], [a.pfec for a in accesses], [a.ac for a in accesses]


def as_row(w: Walk) -> tuple[int, int]:
    """Return a walk's outcome as a batch reports it."""
    return (w.pa, NO_FAULT) if w.error is None else (0, w.error)


@pytest.mark.parametrize("walker", WALKERS, ids=lambda walker: walker.name)
@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: f"{cpu.vendor}-{cpu.maxphyaddr}")
@pytest.mark.parametrize("name", MODES)
def test_every_access_ends_as_in_python(name: str, cpu: CpuModel, walker: Walker) -> None:
    seen: Counter[int] = Counter()
    for seed in range(WORLDS):
        world, accesses = draw(name, seed)
        paging = paging_of(world, cpu, walker)
        memory = Memory(world.frames, world.mode)
        wanted = [as_row(walk_python(world, paging, memory, access)) for access in accesses]
        frames, written = world.frames.copy(), np.zeros(FRAMES, np.uint32)
        va, pfec, not_smap = columns(accesses)
        pa, errors = walk_each(
            frames,
            paging,
            world.registers.cr3,
            va,
            pfec,
            not_smap=not_smap,
            pkru=world.registers.pkru,
            written=written,
            epoch=7,
        )
        assert list(zip(pa.tolist(), errors.tolist(), strict=True)) == wanted
        assert np.array_equal(frames, memory.frames)
        changed = np.any(frames != world.frames, axis=1)
        assert np.array_equal(written, np.where(changed, 7, 0))
        assert not changed.any() or walker.sets_ad
        seen.update(errors.tolist())
    assert NO_FAULT in seen
    assert len(seen) > 8 or name == "nonpaging"


def random_ept(rng: np.random.Generator, level: int) -> np.ndarray:
    """Draw EPT tables, the root in frame 1: the next level's tables follow, three of each."""
    frames = np.zeros((FRAMES, 512), np.uint64)
    for frame in range(1, 1 + 3 * level):
        depth = (frame - 1) // 3
        rwx = rng.choice([7, 7, 7, 7, 3, 5, 4, 1, 2, 0], 512)
        ignored = rng.integers(0, 8, 512) << 8 | rng.integers(0, 16, 512) << 52
        large = np.where(rng.random(512) < 0.2, 1 << 7, 0) if depth < level - 1 else 1 << 7
        leaf = (large != 0) & (depth >= level - 3)
        memory_type = np.where(leaf, rng.choice([0, 1, 4, 5, 6, 6, 6, 2, 7], 512) << 3, 0)
        below = 1 + 3 * (depth + 1) + rng.integers(0, 3, 512)
        size = 12 + 9 * (level - 1 - depth)
        address = np.where(leaf, rng.integers(1, 1 << 10, 512) << max(size, 12), below << 12)
        reserved = np.where(rng.random(512) < 0.03, 1 << rng.choice([3, 13, 45], 512), 0)
        frames[frame] = (rwx | ignored | large | memory_type | address | reserved).astype(np.uint64)
    return frames


@pytest.mark.parametrize("execonly", [False, True])
@pytest.mark.parametrize("ad", [False, True])
@pytest.mark.parametrize("level", [4, 5])
def test_ept(level: int, ad: bool, execonly: bool) -> None:
    paging = make_ept_paging(level, ad=ad, cpu=CPUS[0], walker=PROCESSOR, execonly=execonly)
    seen: Counter[int] = Counter()
    for seed in range(20):
        rng = np.random.default_rng([seed, level])
        frames = random_ept(rng, level)
        memory = Memory(frames, paging.mode)
        gpas = rng.integers(0, 1 << paging.mode.va_bits, 200, dtype=np.uint64).tolist()
        kinds = rng.choice([4, 6, 2, 20, 16], 200).tolist()
        walks = [
            walk(paging, 1 << 12, gpa, kind, memory.load, memory.store)
            for gpa, kind in zip(gpas, kinds, strict=True)
        ]
        compiled = frames.copy()
        pa, errors = walk_each(compiled, paging, 1 << 12, gpas, kinds)
        assert list(zip(pa.tolist(), errors.tolist(), strict=True)) == [as_row(w) for w in walks]
        assert np.array_equal(compiled, memory.frames)
        assert np.array_equal(compiled, frames) == (not ad)
        seen.update(errors.tolist())
    assert seen[NO_FAULT] > 100
    assert len(seen) > 8


@pytest.mark.parametrize("name", MODES)
def test_a_batch_stops_at_its_first_fault_and_can_be_resumed(name: str) -> None:
    faults = 0
    for seed in range(4):
        world, accesses = draw(name, seed)
        paging, registers = paging_of(world), world.registers
        memory, frames = Memory(world.frames, world.mode), world.frames.copy()
        first = 0
        while first < len(accesses):
            va, pfec, not_smap = columns(accesses[first:])
            done, pa, error = walk_batch(
                frames, paging, registers.cr3, va, pfec, not_smap=not_smap, pkru=registers.pkru
            )
            for access, reached in zip(accesses[first : first + done], pa[:done].tolist(), strict=True):
                assert as_row(walk_python(world, paging, memory, access)) == (reached, NO_FAULT)
            first += done
            if error == NO_FAULT:
                assert first == len(accesses)
                break
            assert walk_python(world, paging, memory, accesses[first]).error == error
            # What follows the fault has not been touched yet.
            assert np.array_equal(frames, memory.frames)
            first += 1
            faults += 1
    assert faults > 0 or name == "nonpaging"


def test_pdpte_registers_are_used_unchecked() -> None:
    for seed in range(WORLDS):
        world, accesses = draw("pae", seed)
        paging, registers = paging_of(world), world.registers
        pdptes = [entry | 1 << 5 for entry in reversed(world.pdptes() or [])]
        memory, frames = Memory(world.frames, PAGING_PAE), world.frames.copy()
        frames[registers.cr3 >> 12] = memory.frames[registers.cr3 >> 12] = 0
        wanted = [as_row(walk_python(world, paging, memory, access, pdptes)) for access in accesses]
        va, pfec, not_smap = columns(accesses)
        pa, errors = walk_each(frames, paging, registers.cr3, va, pfec, not_smap=not_smap, pdptes=pdptes)
        assert list(zip(pa.tolist(), errors.tolist(), strict=True)) == wanted
        assert np.array_equal(frames, memory.frames)
        assert (errors == NO_FAULT).any()


def test_pdptes_in_memory_are_read_at_each_walk() -> None:
    """A page that is both the PDPT and a page table: an access sets A in it, bit 5, reserved in a PDPTE."""
    frames = np.zeros((FRAMES, 512), np.uint64)
    frames[1, 0] = 2 << 12 | 1
    frames[2, 0] = 1 << 12 | 7
    paging = make_paging(0x8000_0001, 0x20, 0, CPUS[0])
    _, errors = walk_each(frames, paging, 0x1000, [0, 0], [0, 0])
    assert errors.tolist() == [NO_FAULT, 9]


def test_a_slot_at_an_offset_is_walked_in_its_own_addresses() -> None:
    world, accesses = draw("4level", 1)
    registers, paging = world.registers, paging_of(world)
    va, pfec, not_smap = columns(accesses)
    plain, wanted = world.frames.copy(), world.frames.copy()
    pa, errors = walk_each(wanted, paging, registers.cr3, va, pfec, not_smap=not_smap)
    host = np.full((FRAMES * 3, 512), 0xFFFF_FFFF_FFFF_FFFF, np.uint64)
    host[FRAMES : 2 * FRAMES] = plain
    written = np.zeros(len(host), np.uint32)
    shifted = walk_each(
        host,
        paging,
        registers.cr3,
        va,
        pfec,
        not_smap=not_smap,
        base=FRAMES << 12,
        size=FRAMES << 12,
        written=written,
        epoch=1,
    )
    assert np.array_equal(shifted[0], pa)
    assert np.array_equal(shifted[1], errors)
    assert np.array_equal(host[FRAMES : 2 * FRAMES], wanted)
    assert np.array_equal(np.flatnonzero(written), FRAMES + np.flatnonzero(np.any(wanted != plain, axis=1)))


@pytest.mark.parametrize("mode", [PAGING_PAE, PAGING_4LEVEL], ids=lambda mode: mode.name)
def test_a_table_behind_the_end_holds_nothing(mode: object) -> None:
    frames = np.zeros((4, 512), np.uint64)
    cr4, efer = 0x20, 0x500 if mode is PAGING_4LEVEL else 0
    paging = make_paging(0x8000_0001, cr4, efer, CPUS[0])
    done, _, error = walk_batch(frames, paging, 0x4000, [0x1000], [PFERR_USER_MASK | PFERR_WRITE_MASK])
    assert (done, error) == (0, PFERR_USER_MASK | PFERR_WRITE_MASK)
    frames[1, 0] = frames[1, 511] = 0x4000_0001
    done, _, error = walk_batch(frames, paging, 0x1000, [0x1000], [0])
    assert (done, error) == (0, 0)


def test_pdptes_right_behind_the_end_are_not_read() -> None:
    """What lies there is the host's, and would lead to a page of the guest's."""
    frames = np.zeros((3, 512), np.uint64)
    frames[0, 0], frames[1, 0], frames[2, 0] = 0x1000 | 7, 0x1000 | 7, 0x1
    paging = make_paging(0x8000_0001, 0x20, 0, CPUS[0])
    _, errors = walk_each(frames, paging, 0x2000, [0], [0], size=3 << 12)
    assert errors.tolist() == [NO_FAULT]
    _, errors = walk_each(frames, paging, 0x2000, [0], [0], size=2 << 12)
    assert errors.tolist() == [0]


def test_without_paging_addresses_are_physical() -> None:
    paging = make_paging(1, 0, 0, CPUS[0])
    assert paging.mode is NONPAGING
    va = np.array([0, 0x1234, 0xFFFF_FFFF], np.uint64)
    done, pa, error = walk_batch(np.zeros((1, 512), np.uint64), paging, 0, va, [0, 2, 4])
    assert (done, error) == (3, NO_FAULT)
    assert np.array_equal(pa, va)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": np.zeros((4, 512), np.int64)}, "uint64"),
        ({"frames": np.zeros((4, 1024), np.uint64)[:, ::2]}, "contiguous"),
        ({"pfec": [0]}, "shapes"),
        ({"not_smap": [True]}, "shapes"),
        ({"base": 8}, "base"),
        ({"size": 5 << 12}, "size"),
        ({"base": 1 << 20}, "base"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, object], said: str) -> None:
    paging = make_paging(0x8000_0001, 0x20, 0x500, CPUS[0])
    arguments = {"frames": np.zeros((4, 512), np.uint64), "root": 0, "va": [0, 0], "pfec": [0, 0]} | change
    with pytest.raises(ValueError, match=said):
        walk_batch(paging=paging, **arguments)  # type: ignore[arg-type]
