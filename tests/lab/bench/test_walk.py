"""The comparison with unicorn: what is measured does the same work; no figure is tested."""

from __future__ import annotations

import builtins
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmulab.cli.main import run
from mmulab.errors import InputError
from mmulab.lab.bench import walk as bench
from mmulab.lab.bench.walk import PAGE_BITS, draw_pages, make_frames
from mmulab.x86.mode import PT_ACCESSED_MASK

if TYPE_CHECKING:
    from tests.conftest import CommandLine

NAMES = [
    "batch walk",
    "walk in Python",
    "unicorn, random pages",
    "unicorn, random pages, TLB emptied",
    "unicorn, one page (TLB hits)",
]


def test_all_lines_are_there_and_relate_to_the_batch() -> None:
    rates = bench.bench_walk(seed=3, translations=2000, repeat=1)
    assert [rate.name for rate in rates] == NAMES
    assert rates[0].ratio == 1
    for rate in rates:
        assert rate.per_second > 0
        assert rate.ratio == pytest.approx(rates[0].per_second / rate.per_second)


def test_pages_are_drawn_from_all_and_by_seed() -> None:
    pages = draw_pages(5, 20_000)
    assert len(np.unique(pages)) > 15_000
    assert int(pages.max()) >> 12 < 1 << PAGE_BITS
    assert not np.any(pages & np.uint64(0xFFF))
    assert np.array_equal(pages, draw_pages(5, 20_000))
    assert not np.array_equal(pages, draw_pages(6, 20_000))


def test_a_loop_that_reaches_other_frames_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unicorn gets tables of another seed."""
    seeds = iter((1, 2))
    monkeypatch.setattr(bench, "make_frames", lambda seed: make_frames(next(seeds)))
    with pytest.raises(RuntimeError, match="unicorn, random pages: the loads add up to"):
        bench.bench_walk(seed=1, translations=2000, repeat=1)


def test_both_sides_set_accessed_in_the_same_entries() -> None:
    import unicorn

    ours, theirs = make_frames(4), make_frames(4)
    paging = bench.make_paging(bench.CR0, bench.CR4, bench.EFER, bench.CpuModel(vendor="intel"))
    pages = draw_pages(4, 3000)
    bench._time_batch(ours, paging, pages, 1)
    bench._time_unicorn(unicorn, theirs, bench.DRAW + bench.LOAD, 4, 3000, 1)
    lower = slice(bench.FIRST_LOWER, None)
    assert np.array_equal(ours[lower], theirs[lower])
    assert np.count_nonzero(ours[lower] & np.uint64(PT_ACCESSED_MASK)) == len(np.unique(pages))


def test_without_unicorn_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "unicorn":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="'unicorn' is not installed"):
        bench.bench_walk(translations=2000)


def test_command(command: CommandLine) -> None:
    done = command("bench", "--translations", "2000", "--repeat", "1")
    assert done.returncode == 0
    assert [line.partition("  ")[0] for line in done.stdout.splitlines()] == NAMES


def test_command_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--json", "--translations", "2000", "--repeat", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["translations"] == 2000
    assert [rate["name"] for rate in answer["rates"]] == NAMES
