"""The table of features: whole, in one of three states, and borne out by what it names.

That the model agrees with the recordings is tested in ``tests/conform/test_recordings.py``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mmulab import events as ev
from mmulab.check.features import CONFORMANT, MODELLED, NOT_MODELLED, SECTIONS, STATES, Feature, features
from mmulab.conform.recording import RecordedOp, read_recording
from mmulab.events import EVENT_TYPES
from mmulab.kvm.kernels import KERNELS
from mmulab.kvm.roles.design import DESIGNS

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data/conformance"
MORE = ROOT / "data/conformance-more"
ROWS = {
    "W": 14,
    "R": 20,
    "X": 12,
    "C": 12,
    "G": 12,
    "Q": 6,
    "T": 10,
    "U": 11,
    "K": 6,
    "Z": 8,
    "M": 8,
    "H": 4,
    "D": 8,
    "F": 10,
}
"""How many features each section has."""
TERM = re.compile(r"(?P<what>\w+)(?P<tests>(?: [\w.]+(?:&\w+)?(?:=\w+)?)*)(?:\*(?P<count>\d+))?")
"""A type of event with fields; see :mod:`mmulab.check.features`."""
FACTS = DESIGNS["passthrough"].facts


def number(word: str) -> int | str:
    return int(word, 0) if word[0].isdigit() else word


def name_in(test: str) -> str:
    """Return the field of ``field=value`` or ``field&mask``."""
    return re.split("[&=]", test)[0]


def field_of(event: Any, name: str) -> Any:
    """Return a field of an event, or of its role."""
    if name.startswith("role."):
        return getattr(FACTS(event.role), name.removeprefix("role."))
    return getattr(event, name)


def holds(event: Any, test: str) -> bool:
    """Whether ``field=value``, ``field&mask`` or ``field&mask=value`` is so."""
    return field_is(field_of(event, name_in(test)), test)


def field_is(value: Any, test: str) -> bool:
    """Whether a test of a field holds of its value."""
    name, _, wanted = test.partition("=")
    _, _, mask = name.partition("&")
    if mask:
        value &= int(mask, 0)
        return bool(value == number(wanted) if wanted else value)
    return bool(value == number(wanted))


def count_in(op: RecordedOp, term: str) -> bool:
    """Whether one op of a recording has what a term says."""
    kind, _, name = term.partition(" ")
    if kind == "op":
        return op.text.split()[0] == name
    if kind == "stat":
        return name in op.stats
    if kind == "out":
        return all(field_is(op.outcome.get(name_in(test), 0), test) for test in name.split())
    found = TERM.fullmatch(term)
    assert found, f"{term!r} is no claim"
    of_type = [e for e in op.events if type(e) is EVENT_TYPES[found["what"]]]
    met = sum(all(holds(e, test) for test in found["tests"].split()) for e in of_type)
    return met >= int(found["count"] or 1)


def is_in(ops: tuple[RecordedOp, ...], claim: str) -> bool:
    """Whether a claim holds of a recording's ops."""
    if claim.startswith("no "):
        return not is_in(ops, claim.removeprefix("no "))
    terms = claim.split(" + ")
    return any(all(count_in(op, term) for term in terms) for op in ops)


def path_of(kernel: str, name: str) -> Path | None:
    """The recording of a scenario on a kernel; None: there is none."""
    paths = (folder / kernel / f"{name}.jsonl.xz" for folder in (DATA, MORE))
    return next((path for path in paths if path.exists()), None)


@cache
def ops_of(path: Path) -> tuple[RecordedOp, ...]:
    return read_recording(path).ops


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def named_tests(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if "::" in word]


def recordings_in(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if "::" not in word]


def recordings_of(row: Feature, kernel: str) -> list[Path]:
    """The recordings of a kernel that a row names."""
    return [path for name in recordings_in(row.evidence) if (path := path_of(kernel, name))]


def test_no_row_is_missing() -> None:
    assert list(ROWS) == list(SECTIONS)
    wanted = [f"{letter}{i}" for letter, count in ROWS.items() for i in range(1, count + 1)]
    assert [row.id for row in features()] == wanted


def test_every_row_says_what_it_is_and_has_a_state() -> None:
    for row in features():
        assert set(row.states.values()) <= set(STATES), row
        assert row.feature, row
    for kernel in KERNELS:
        assert all(Counter(row.states[kernel] for row in features())[state] for state in STATES)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_state_has_the_evidence_that_it_needs(kernel: str) -> None:
    for row in features():
        if row.states[kernel] == CONFORMANT:
            assert recordings_of(row, kernel), row
            assert row.claims(kernel), row
        elif row.states[kernel] == MODELLED:
            assert named_tests(row.evidence), row
            assert not recordings_of(row, kernel), row
            if CONFORMANT not in row.states.values():
                assert not row.shows, row
        else:
            assert row.states[kernel] == NOT_MODELLED
            assert row.remark, row
            assert not row.evidence, row


@pytest.mark.parametrize("row", features(), ids=lambda row: row.id)
def test_what_a_row_names_is_there(row: Any) -> None:
    for word in named_tests((*row.evidence, *row.remark.replace(";", " ").split())):
        path, _, name = word.partition("::")
        assert name in functions(path), word
    for name in recordings_in(row.evidence):
        first = [(DATA / kernel / f"{name}.jsonl.xz").exists() for kernel in KERNELS]
        assert all(first) or (not any(first) and any(path_of(kernel, name) for kernel in KERNELS)), name
    for name in re.findall(r"(?<![\w-])(?:tests/\S+\.py|(?:\w+-)*(?:sh|ept)/\S+\w)", row.remark):
        paths = [ROOT / name] if name.endswith(".py") else [path_of(k, name) or ROOT / name for k in KERNELS]
        assert all(path.exists() for path in paths), name


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("row", features(), ids=lambda row: row.id)
def test_recordings_have_what_a_row_says(row: Any, kernel: str) -> None:
    for path in recordings_of(row, kernel):
        for claim in row.claims(kernel):
            assert is_in(ops_of(path), claim), f"{path}: {claim}"


def test_a_claim_of_one_kernel_is_no_other_kernels() -> None:
    row = Feature("Z1", {}, (), ("op wr", "6.1.192: op rd", "6.12.117: no op rd"), "", "")
    assert row.claims("6.1.192") == ["op wr", "op rd"]
    assert row.claims("6.12.117") == ["op wr", "no op rd"]
    known = {claim.partition(":")[0] for row in features() for claim in row.shows if ":" in claim}
    assert known <= set(KERNELS)


CLAIMS: list[tuple[str, Callable[[bool], bool]]] = [
    ("kvm_mmu_walker_error pferr&8", bool),
    ("kvm_mmu_walker_error pferr=9", bool),
    ("kvm_mmu_walker_error pferr=10", lambda said: not said),
    ("kvm_mmu_get_page role.level=2 created=0", bool),
    ("kvm_mmu_walker_error*2", lambda said: not said),
    ("op rd + stat pf_guest", bool),
    ("op wr", lambda said: not said),
    ("no op wr", bool),
    ("op wr + stat pf_guest", lambda said: not said),
    ("out vec=14 err&32", bool),
    ("out vec=14 err&8", lambda said: not said),
    ("op rd + out vec=14", lambda said: not said),
]


@pytest.mark.parametrize(("claim", "judge"), CLAIMS, ids=[claim for claim, _ in CLAIMS])
def test_a_claim_is_true_or_false(claim: str, judge: Callable[[bool], bool]) -> None:
    role = DESIGNS["passthrough"].layout.pack(level=2)
    seen = (ev.kvm_mmu_walker_error(9), ev.kvm_mmu_get_page(1, role, 0, 0, False, False))
    fault = {"out": "exc", "vec": 14, "err": 0x25}
    ops = (RecordedOp(1, 0, "rd s 4 0", {}, seen, {"pf_guest": 1}), RecordedOp(2, 1, "nop", fault, (), {}))
    assert judge(is_in(ops, claim))


@pytest.mark.parametrize("claim", ["nothing", "kvm_mmu_walker_error pferr>8"])
def test_what_is_no_claim_is_not_taken_for_one(claim: str) -> None:
    op = RecordedOp(1, 0, "rd s 4 0", {}, (ev.kvm_mmu_walker_error(9),), {})
    with pytest.raises((AssertionError, KeyError)):
        count_in(op, claim)
