"""Host memory: frames, the views of them, and which ones a checkpoint must copy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.memory.host import FRAME_BYTES, HostMemory, OutOfFramesError

MIB2 = 1 << 21


def small(**more: int) -> HostMemory:
    return HostMemory(16 * FRAME_BYTES, table_frames=8, **more)


def test_the_backing_is_aligned_behind_the_tables() -> None:
    memory = small()
    assert memory.backing << 12 == MIB2
    assert memory.backing_frames == 16
    assert len(memory.frames) == memory.backing + 16
    assert HostMemory(FRAME_BYTES, table_frames=600).backing == 1024
    assert small(align=FRAME_BYTES).backing == 9


@pytest.mark.parametrize("size", [0, -FRAME_BYTES, 100])
def test_a_backing_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="not a multiple of 4096"):
        HostMemory(size)


def test_frames_are_distinct_and_never_frame_0() -> None:
    memory = small()
    frames = [memory.alloc_frame() for _ in range(8)]
    assert frames == list(range(1, 9))
    with pytest.raises(OutOfFramesError, match="all 8 table frames"):
        memory.alloc_frame()


def test_the_frame_freed_last_comes_back_first_and_zeroed() -> None:
    memory = small()
    first, second = memory.alloc_frame(), memory.alloc_frame()
    memory.store64(second << 12 | 0xFF8, 5)
    memory.free_frame(first)
    memory.free_frame(second)
    assert [memory.alloc_frame(), memory.alloc_frame(), memory.alloc_frame()] == [second, first, 3]
    assert memory.load64(second << 12 | 0xFF8) == 0


@given(st.integers(0, FRAME_BYTES - 8), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1))
def test_all_views_show_the_same_little_endian_memory(offset: int, size: int, value: int) -> None:
    memory = small()
    hpa = memory.backing << 12 | offset
    value &= (1 << 8 * size) - 1
    memory.write(hpa, size, value)
    assert memory.read(hpa, size) == value
    assert sum(byte << 8 * i for i, byte in enumerate(memory.bytes[hpa : hpa + size])) == value
    word = hpa & ~7
    assert memory.words[word >> 3] == memory.load64(word) == int(memory.frames[hpa >> 12, (offset & ~7) >> 3])
    assert memory.dwords[word >> 2] | memory.dwords[(word >> 2) + 1] << 32 == memory.load64(word)


def test_writes_leave_the_epoch_in_their_frames() -> None:
    memory = small()
    base = memory.backing
    memory.epoch = 7
    memory.store64(base << 12, 1)
    memory.write((base + 2) << 12, 4, 1)
    memory.fill((base + 4 << 12) - 1, 2, 0xAA)
    frame = memory.alloc_frame()
    stamped = {i for i, epoch in enumerate(memory.written) if epoch == 7}
    assert stamped == {frame, base, base + 2, base + 3, base + 4}
    assert memory.read((base + 4 << 12) - 2, 4) == 0x00AAAA00


def test_a_read_leaves_no_stamp() -> None:
    memory = small()
    memory.epoch = 9
    memory.read(memory.backing << 12, 8)
    memory.load64(memory.backing << 12)
    assert 9 not in memory.written


def test_a_huge_page_that_was_split_maps_4_kib() -> None:
    memory = HostMemory(2 * MIB2)
    assert memory.mapping_level(memory.backing + 5, 2) == 2
    memory.page_level[memory.backing >> 9] = 1
    assert [memory.mapping_level(memory.backing + i, 2) for i in (0, 511, 512)] == [1, 1, 2]
    assert memory.mapping_level(memory.backing + 512, 1) == 1


def test_small_pages_that_were_collapsed_map_2_mib() -> None:
    memory = HostMemory(2 * MIB2)
    memory.page_level[memory.backing >> 9] = 2
    assert [memory.mapping_level(memory.backing + i, 1) for i in (0, 511, 512)] == [2, 2, 1]


def test_the_repr_counts_frames_in_use() -> None:
    memory = small()
    memory.free_frame(memory.alloc_frame())
    memory.alloc_frame()
    assert "1 of 8 table frames used" in repr(memory)
