"""Questions of the thread: the deltas are those of two runs, and the words follow them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.check.access import WrongAccess
from mmulab.errors import InputError
from mmulab.kvm.sync.variations import VARIATIONS
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.compare import SyncCell, compare_syncs
from mmulab.lab.sync.questions import Answer, Effect, answers, find_variations, policies_of

WORK = "workload/kernel-maps/64/shadow"
WRONG = WrongAccess(3, "rd s 4 1000", 0x1000, 0x2000, "ok", gva=0x1000)


def answer(name: str, *works: str) -> Answer:
    (found,) = answers(find_variations(name), find_works(works))
    return found


def effect(**changes: int) -> Effect:
    """A run, and the same with other counts."""
    (own,) = compare_syncs(["oos_2008"], find_works([WORK]))
    return Effect(own, replace(own, counts=own.counts._replace(**changes)))


def said(*effects: Effect) -> str:
    return Answer(VARIATIONS["globals"], {"list": list(effects)}).sentence("list")


def test_deltas_are_the_difference_of_two_runs() -> None:
    found = answer("index", WORK)
    own, lru = compare_syncs(["oos_2008", "oos_2008+index=lru"], find_works([WORK]))
    table = found.table()
    ((value, work, *_),) = table.rows
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (value, work) == ("lru", "kernel-maps/64")
    assert row["given up for another"] == lru.counts.evicted - own.counts.evicted != 0
    assert row["entries compared"] == lru.counts.entries - own.counts.entries != 0
    assert "bytes" not in table.columns
    assert f"given up for another {lru.counts.evicted - own.counts.evicted:+,}" in found.sentence("lru")


def test_a_list_never_gives_a_page_up() -> None:
    (found,) = answer("globals", WORK).effects["list"]
    assert found.own.counts.evicted > 0 == found.varied.counts.evicted
    assert found.deltas["bytes"] == 16 - 60


def test_work_without_a_difference_is_left_out_and_says_so() -> None:
    found = answer("index", "workload/text-patching/64/shadow")
    assert found.table().rows == ()
    assert "no count differs on the 1 pieces of work that both get right" in found.sentence("lru")


def test_words_follow_the_run() -> None:
    same = effect()
    assert said(same).endswith("no count differs on the 1 pieces of work that both get right.")
    entries = same.own.counts.entries
    dearer, cheaper = effect(entries=entries * 9), effect(entries=0)
    assert "% dearer there" in said(dearer)
    assert "% cheaper there" in said(cheaper)
    assert "does 2 otherwise" in said(dearer, cheaper, same)
    assert "takes 6 bytes less" in said(effect(peak_bytes=same.own.counts.peak_bytes - 6))
    assert "takes up to 6 bytes more" in said(same, effect(peak_bytes=same.own.counts.peak_bytes + 6))


def test_wrong_runs_are_named_and_not_counted() -> None:
    (own,) = compare_syncs(["oos_2008"], find_works([WORK]))
    fails: SyncCell = replace(own, wrong=WRONG, counts=own.counts._replace(syncs=1))
    broken, mended = Effect(own, fails), Effect(fails, own)
    assert (broken.broken, broken.mended, broken.deltas) == (True, False, {})
    assert (mended.broken, mended.mended, mended.deltas) == (False, True, {})
    assert "it breaks kernel-maps/64;" in said(broken)
    assert "it mends kernel-maps/64 and " not in said(mended)
    assert "it mends kernel-maps/64, kernel-maps/64, kernel-maps/64 and 1 more;" in said(*[mended] * 4)


def test_moving_mends_the_table_that_lost_its_flag() -> None:
    found = answer("on_change", "sync/*")
    verdicts = {row[1]: row[-1] for row in found.table().rows}
    assert verdicts == {"sync/global-lost-pae": "mends", "sync/global-lost-64": "mends"}
    assert VARIATIONS["on_change"].asked in found.html().replace("-&gt;", "->")


def test_questions_are_chosen_by_pattern() -> None:
    assert find_variations("-") == answers([], find_works([WORK])) == []
    assert [v.name for v in find_variations("glob*,inuse")] == ["globals", "global_by", "inuse"]
    with pytest.raises(InputError, match="variation 'nothing': unknown; they are globals, index,"):
        find_variations("inuse,nothing")
    assert [str(p) for p in policies_of(VARIATIONS["parent_zap"]).values()] == [
        "oos_2008",
        "oos_2008+parent_zap=orphan",
        "oos_2008+parent_zap=refuse",
    ]
