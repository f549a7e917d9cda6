"""The small operating system: its tables are what it believes they are."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import run
from mmulab.workload.small_os import KERNEL, MOST_TABLES, PAGE, READ, WRITE, SmallOs

MODES = ("32", "pae", "64", "57")


@pytest.mark.parametrize("mode", MODES)
def test_what_is_mapped_is_reached_and_what_is_not_faults(mode: str) -> None:
    os = SmallOs(mode)
    space, gva, page = os.new_space(), os.layout.user + 5 * PAGE, os.page()
    os.map(space, gva, page, WRITE)
    os.switch(space)
    os.write(gva, 7)
    os.read_kernel(page)
    os.map(space, gva, page, READ)
    os.invlpg(gva)
    os.write(gva, 8)
    os.read(gva)
    assert os.entry(space, gva) == page | READ
    assert os.unmap(space, gva) == page | READ
    os.switch(space)
    os.read(gva)
    assert (os.entry(space, gva), os.entry(os.root, gva)) == (0, 0)
    results = [r for r in run(os.scenario()) if isinstance(r.op, ops.Read | ops.Write)]
    tables = 2 * 2 if mode == "pae" else 2  # PAE's entries are written in halves
    kinds = [r.outcome.kind.value for r in results]
    assert kinds == ["ok", "ok", *["ok"] * (tables // 2), "exc", "ok", *["ok"] * (tables // 2), "exc"]
    assert [r.outcome.rax for r in results if isinstance(r.op, ops.Read)][:2] == [7, 7]


@pytest.mark.parametrize("mode", MODES)
def test_the_kernels_part_is_in_every_space_and_not_the_users(mode: str) -> None:
    os = SmallOs(mode)
    gva, page = os.layout.user, os.page()
    os.map(os.root, gva, page, WRITE)
    other = os.new_space()
    os.switch(other)
    os.read_kernel(page)
    os.read(gva)
    os.map(os.root, gva, page, KERNEL)
    os.switch(os.root)
    os.read(gva)
    assert [r.outcome.kind for r in run(os.scenario()) if isinstance(r.op, ops.Read)] == [
        OutcomeKind.OK,
        OutcomeKind.EXC,
        OutcomeKind.EXC,
    ]


@pytest.mark.parametrize("mode", MODES)
def test_dropped_tables_come_back_empty(mode: str) -> None:
    os = SmallOs(mode)
    roots = []
    for _ in range(MOST_TABLES):
        space = os.new_space()
        os.map(space, os.layout.user, 0x300000, READ)
        os.unmap(space, os.layout.user)
        os.drop_tables(space, os.layout.user)
        os.drop_space(space)
        roots.append(space)
    assert len(set(roots)) == 1
    assert not any(value for at, value in os._entries.items() if roots[0] <= at < roots[0] + PAGE)


def test_pages_are_aligned_and_used_once() -> None:
    os = SmallOs("64", mem=1 << 23)
    first, large = os.page(), os.pages(1, 1 << 21)
    assert (large % (1 << 21), os.page()) == (0, large + (1 << 21))
    os.free(first)
    assert os.page() == first
    with pytest.raises(InputError, match="bytes of memory are too few"):
        os.pages(9, 1 << 21)


def test_no_more_tables_than_there_are() -> None:
    os = SmallOs("64")
    spaces = [os.new_space() for _ in range(MOST_TABLES - len({at >> 12 for at in os._entries}))]
    assert len(set(spaces)) == len(spaces)
    with pytest.raises(InputError, match="256 tables are too few; make it smaller"):
        os.new_space()


def test_a_mode_without_tables_is_refused() -> None:
    with pytest.raises(InputError, match="mode 'np': a workload runs in one of 32, pae, 64, 57"):
        SmallOs("np")
