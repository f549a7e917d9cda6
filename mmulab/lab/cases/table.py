"""The cases that are hard to run on real machines, as a table.

Each row is one way in which KVM makes tables: directly or as a shadow, for a
guest of each paging mode or for the guest of a guest, on a host with 4- or
5-level paging of its own or on a 32-bit one. The scenarios are built by
:mod:`mmulab.lab.cases.build` and run by :mod:`mmulab.lab.cases.run`; rows for
Intel's nested tables are recordings of a real kernel in ``data/conformance``,
as they are or with a level above their EPT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from mmulab import paths
from mmulab.conform.recording import SUFFIXES, KernelRecording, read_recording
from mmulab.errors import InputError, near
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.sync.counts import sync_counts
from mmulab.lab.cases.build import (
    below_level_5,
    la57_switch_nested,
    la57_switch_shadow,
    nested_fault,
    nested_guest,
    nested_root_write,
    plain_guest,
)
from mmulab.lab.cases.case import Case
from mmulab.lab.cases.contrast import Contrast, contrast
from mmulab.lab.cases.flush import ept_dirty_log, ept_roots, npt_dirty_log, npt_flush
from mmulab.lab.cases.mixed import (
    mixed_access,
    mixed_direct,
    mixed_halves,
    mixed_modes,
    mixed_npt_modes,
    mixed_npt_nx,
    mixed_rights,
)
from mmulab.lab.cases.portal import portal_switch_nested
from mmulab.lab.cases.run import CaseRun, design_of, run_case, run_recorded
from mmulab.lab.cases.smm import smm_guest
from mmulab.scenario.scenario import Scenario
from mmulab.workload.stream import Stream, load_stream

__all__ = [
    "DEFAULT",
    "Case",
    "Row",
    "cases",
    "find_cases",
    "read_boot",
    "read_case",
    "row",
    "run_work",
    "scenario_of",
    "totals",
    "verdict_of",
]

OLD_DESIGN = "pre_fix"
"""What each case is compared with: the role word before 5.19."""

DEFAULT = find_design("passthrough")
"""The word of 6.1, which runs beside a design: what is wrong under it, Linux itself does wrong."""

_SUFFIX = ".jsonl.xz"
MODE_WORDS = {"np": "nonpaging", "32": "32-bit", "pae": "PAE", "64": "4-level", "57": "5-level"}


_MODES = ("np", "32", "pae", "64", "57")
_CR4_NOTE = "6.1 gives L1 the CR4 of L2 back at this #VMEXIT; 6.1+svm_vmexit_restores_cr4 does not"


def _modes(l0: int) -> tuple[str, ...]:
    """Guests of 5-level paging need a processor with it, which then runs its host so too."""
    return _MODES if l0 == 5 else _MODES[:-1]


def _plain(l0: int) -> Iterator[Case]:
    for mode in _modes(l0):
        make = partial(plain_guest, mode, l0)
        yield Case(f"shadow-{mode}-l0-{l0}", f"npt=0, {l0}-level", MODE_WORDS[mode], "", partial(make, npt=0))
    yield Case(
        f"shadow-32-nopse-l0-{l0}",
        f"npt=0, {l0}-level",
        "32-bit, PSE=0",
        "",
        partial(plain_guest, "32", l0, pse=False, npt=0),
    )
    for name, tdp_mmu in (("tdp", 0), ("tdp-mmu", 1)):
        host = f"npt=1, {'TDP MMU' if tdp_mmu else 'legacy'}, {l0}-level"
        for mode in _modes(l0):
            make = partial(plain_guest, mode, l0, npt=1, tdp_mmu=tdp_mmu)
            yield Case(f"{name}-{mode}-l0-{l0}", host, MODE_WORDS[mode], "", make)
        make = partial(plain_guest, "64", l0, vendor="intel", ept=1, tdp_mmu=tdp_mmu)
        yield Case(f"{name}-ept-64-l0-{l0}", host.replace("npt", "ept"), MODE_WORDS["64"], "", make)


def _nested(l0: int) -> Iterator[Case]:
    """L1 on AMD: with nested tables in each form, without on a host with NPT, without on one without."""
    worlds = (("npt", True, 1, "L1's NPT"), ("nonpt-tdp", False, 1, ""), ("nonpt-shadow", False, 0, ""))
    for name, nested_paging, npt, tables in worlds:
        for l1 in _modes(l0)[1:]:
            for l2 in _modes(l0):
                # Hosts as in the recordings: the TDP MMU with four levels, the legacy MMU with five.
                make = partial(nested_guest, l1, l2, l0, nested_paging=nested_paging, npt=npt)
                spoiled = name == "nonpt-shadow" and l2 == "np"
                yield Case(
                    f"{name}-{l1}-l2-{l2}-l0-{l0}",
                    f"npt={npt}, {l0}-level",
                    f"{MODE_WORDS[l1]} {tables or 'L1, no NPT'}",
                    MODE_WORDS[l2],
                    partial(make, tdp_mmu=int(l0 == 4)),
                    note=_CR4_NOTE if spoiled else "",
                )


def _nested_events(l0: int) -> Iterator[Case]:
    """What L1 does to its NPT: maps a page upon a #NPF, writes the root."""
    for l1 in _modes(l0)[1:]:
        host, npt = f"npt=1, {l0}-level", f"{MODE_WORDS[l1]} L1's NPT"
        made = partial(nested_fault, l1, l0)
        yield Case(f"npt-fault-{l1}-l0-{l0}", host, f"{npt}, mapped upon #NPF", MODE_WORDS["np"], made)
        if l1 != "pae":
            made = partial(nested_root_write, l1, l0)
            yield Case(f"npt-root-write-{l1}-l0-{l0}", host, f"{npt}, root written", MODE_WORDS["np"], made)


def _switches() -> Iterator[Case]:
    for first, words in (("64", "4-level, then 5-level"), ("57", "5-level, then 4-level")):
        name = "4to5" if first == "64" else "5to4"
        make = partial(la57_switch_nested, first, 5)
        yield Case(
            f"la57-switch-npt-{name}-l0-5", "npt=1, 5-level", f"{words} L1's NPT", MODE_WORDS["np"], make
        )
        for kind, npt in (("shadow", 0), ("tdp", 1)):
            make = partial(la57_switch_shadow, first, 5, npt=npt)
            yield Case(f"la57-switch-{kind}-{name}-l0-5", f"npt={npt}, 5-level", words, "", make)
    for l0 in (4, 5):
        words = "PAE, then 4-level L1's NPT, same root"
        made = partial(portal_switch_nested, l0)
        yield Case(f"portal-switch-npt-l0-{l0}", f"npt=1, {l0}-level", words, MODE_WORDS["np"], made)


def _mixed() -> Iterator[Case]:
    """The same tables under more than one set of rules: 32-bit, PAE and 4-level paging, rights, worlds."""
    for mode in ("32", "pae", "64"):
        words = MODE_WORDS[mode]
        for rule, name in (("wp", "CR0.WP"), ("smep", "SMEP"), ("smap", "SMAP")):
            make = partial(mixed_rights, mode, **{rule: True})
            yield Case(f"mixed-{rule}-{mode}", "npt=0, 4-level", f"{words}, {name} off and on", "", make)
        ways = f"{words}, a table by three ways"
        yield Case(f"mixed-access-{mode}", "npt=0, 4-level", ways, "", partial(mixed_access, mode))
    halves = "32-bit, two halves of a table"
    yield Case("mixed-halves-32", "npt=0, 4-level", halves, "", mixed_halves)
    yield Case("mixed-direct-pae", "npt=0, 4-level", "PAE, paging off and on", "", mixed_direct)
    turn = "32-bit, PAE, 4-level in turn"
    for l0 in (4, 5):
        shadow, nested = f"npt=0, {l0}-level", f"npt=1, {l0}-level"
        pae, plain = MODE_WORDS["pae"], MODE_WORDS["np"]
        yield Case(f"mixed-modes-l0-{l0}", shadow, turn, "", partial(mixed_modes, l0, nested=False))
        make = partial(mixed_modes, l0, nested=True)
        yield Case(f"mixed-modes-l2-l0-{l0}", shadow, f"{turn} L1, no NPT", pae, make)
        made = partial(mixed_npt_modes, l0)
        yield Case(f"mixed-npt-modes-l0-{l0}", nested, f"{turn} L1's NPT", plain, made)
        npt_nx = "4-level L1's NPT, EFER.NX off and on"
        yield Case(f"mixed-npt-nx-l0-{l0}", nested, npt_nx, plain, partial(mixed_npt_nx, l0))


_EPT = (
    ("ept-ad", "4-level EPT, A/D", "nonpaging", "nested-ept/ept-basic-ad"),
    ("ept-noad", "4-level EPT, no A/D", "nonpaging", "nested-ept/ept-basic-noad"),
    ("ept-ad-l1-32", "4-level EPT of a 32-bit L1", "nonpaging", "nested-ept/ept-basic-ad-l132"),
    ("ept-ad-l1-pae", "4-level EPT of a PAE L1", "nonpaging", "nested-ept/ept-basic-ad-l1pae"),
    ("ept-ad-l2-32", "4-level EPT, A/D", "32-bit", "nested-ept/ept-l2-32-ad"),
    ("ept-ad-l2-64", "4-level EPT, A/D", "4-level", "nested-ept/ept-l2-64-ad"),
    ("ept-noad-l2-pae", "4-level EPT, no A/D", "PAE", "nested-ept-tdpmmu/ept-l2-pae-noad"),
    ("ept-rights", "4-level EPT, each R, W, X, execute-only", "nonpaging", "nested-ept/ept-perms-leaf-ad"),
    ("ept-misconfig", "4-level EPT, misconfigured", "nonpaging", "nested-ept/ept-misconfig-ad"),
    ("ept-host-noad", "4-level EPT, host without A/D", "nonpaging", "nested-ept-host-noad/ept-roots6-noad"),
    ("noept-tdp-64-l2-64", "4-level L1, no EPT", "4-level", "nested-noept-tdp/noept-64-l2-64"),
    ("noept-shadow-32-l2-pae", "32-bit L1, no EPT", "PAE", "nested-noept-shadow/noept-32-l2-pae"),
)


def _host_32() -> Iterator[Case]:
    """A 32-bit host: the tables that it makes have PAE's form, and the TDP MMU is not for it."""
    for l1 in ("32", "pae"):
        make = partial(nested_guest, l1, "np", 4, nested_paging=True, npt=1, tdp_mmu=0, x86_64=0)
        yield Case(f"host-32-npt-{l1}", "npt=1, PAE", f"{MODE_WORDS[l1]} L1's NPT", MODE_WORDS["np"], make)
    for kind, npt, mode in (("shadow", 0, "32"), ("shadow", 0, "pae"), ("tdp", 1, "32")):
        plain = partial(plain_guest, mode, 4, npt=npt, tdp_mmu=0, x86_64=0)
        yield Case(f"host-32-{kind}-{mode}", f"npt={npt}, PAE", MODE_WORDS[mode], "", plain)


def _flushes(l0: int) -> Iterator[Case]:
    """What must make L2's translations go: ASID and TLB control, EPT pointers and INVEPT, the dirty log."""
    l2 = MODE_WORDS["np"]
    for l1 in _modes(l0)[1:]:
        host, npt = f"npt=1, {l0}-level", f"{MODE_WORDS[l1]} L1's NPT"
        for kind, words in (("asid", "flushed by ASID"), ("tlb-control", "flushed by TLB_CONTROL")):
            made = partial(npt_flush, l1, l0, kind)
            yield Case(f"npt-flush-{kind}-{l1}-l0-{l0}", host, f"{npt}, {words}", l2, made)
        made = partial(npt_dirty_log, l1, l0)
        yield Case(f"npt-dirty-log-{l1}-l0-{l0}", host, f"{npt}, dirty log", l2, made)
    for levels in range(4, l0 + 1):
        for ad in (True, False):
            host, ept = f"ept=1, {l0}-level", f"{levels}-level EPT, {'A/D' if ad else 'no A/D'}"
            name = f"{levels}-level-{'ad' if ad else 'noad'}-l0-{l0}"
            two, logged = partial(ept_roots, l0, levels, ad=ad), partial(ept_dirty_log, l0, levels, ad=ad)
            yield Case(f"ept-roots-{name}", host, f"{ept}, two roots", l2, two)
            yield Case(f"ept-dirty-log-{name}", host, f"{ept}, dirty log", l2, logged)


def _smm() -> Iterator[Case]:
    """A guest and its SMI handler, which sees other memory at one address."""
    for mode in _MODES:
        l0, words = 5 if mode == "57" else 4, f"{MODE_WORDS[mode]}, in and out of SMM"
        made = partial(smm_guest, mode, l0, npt=0)
        yield Case(f"smm-shadow-{mode}-l0-{l0}", f"npt=0, {l0}-level", words, "", made)
    for name, tdp_mmu in (("tdp", 0), ("tdp-mmu", 1)):
        words = f"{MODE_WORDS['64']}, in and out of SMM"
        for vendor, tables in (("amd", "npt"), ("intel", "ept")):
            made = partial(smm_guest, "64", 4, vendor=vendor, tdp_mmu=tdp_mmu, **{tables: 1})
            host = f"{tables}=1, {'TDP MMU' if tdp_mmu else 'legacy'}, 4-level"
            yield Case(f"smm-{name}-{tables}-l0-4", host, words, "", made)


def _ept_5() -> Iterator[Case]:
    """5-level EPT, which no recording has."""
    for name, words in (("ad", "A/D"), ("noad", "no A/D")):
        place = f"6.1.192/nested-ept/ept-basic-{name}"
        judge = "a level-5 entry that grants everything, so each outcome must be as there"
        yield Case(
            f"ept-5-level-{name}",
            "ept=1, 5-level",
            f"5-level EPT, {words}",
            MODE_WORDS["np"],
            recording=f"conformance/{place}",
            change=below_level_5,
            note=f"{place} below {judge}",
        )


def cases() -> list[Case]:
    """Return all cases, in the order of the table."""
    built = [*_switches()]
    for l0 in (4, 5):
        built += [*_plain(l0), *_nested(l0), *_nested_events(l0), *_flushes(l0)]
    recorded = [
        Case(
            name,
            f"ept={0 if 'shadow' in name else 1}, recorded",
            guest,
            l2,
            recording=f"conformance/6.1.192/{found}",
        )
        for name, guest, l2, found in _EPT
    ]
    return [*built, *recorded, *_ept_5(), *_host_32(), *_mixed(), *_smm()]


def find_cases(patterns: Iterable[str]) -> list[Case]:
    """Return the cases whose names match any of `patterns` (``*`` stands for anything); all if there is none.

    Raises
    ------
    InputError
        A pattern that no name matches.
    """
    known, wanted = cases(), list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(case.name, pattern) for case in known):
            hint = near(pattern, (case.name for case in known))
            raise InputError(f"case '{pattern}': unknown; {hint}'mmulab cases' lists them all")
    return [
        case for case in known if not wanted or any(fnmatchcase(case.name, pattern) for pattern in wanted)
    ]


def verdict_of(wrong: bool, *, as_linux: bool) -> str:
    """Name a verdict.

    >>> verdict_of(False, as_linux=False), verdict_of(True, as_linux=False), verdict_of(True, as_linux=True)
    ('correct', 'wrong', 'kernel')
    """
    return "correct" if not wrong else "kernel" if as_linux else "wrong"


def totals(verdicts: Iterable[str]) -> str:
    """Count verdicts.

    >>> totals(["correct", "kernel", "correct"])
    '2 right, 0 wrong by design, 1 as Linux'
    """
    count = Counter(verdicts)
    return f"{count['correct']} right, {count['wrong']} wrong by design, {count['kernel']} as Linux"


@dataclass(frozen=True)
class Row:
    """One row after it was run.

    Attributes
    ----------
    case : Case
    design : RoleDesign
    run : CaseRun
        Under that design.
    old : Contrast
        How the old design differs.
    as_linux : bool
        What is wrong is wrong under the default design too.
    """

    case: Case
    design: RoleDesign
    run: CaseRun
    old: Contrast
    as_linux: bool = False

    @property
    def verdict(self) -> str:
        """``correct``, ``wrong``, or ``kernel``: the default design ends so too, Linux itself does it."""
        return verdict_of(self.run.wrong is not None, as_linux=self.as_linux)

    @property
    def is_wrong(self) -> bool:
        """Whether it is wrong under either role word."""
        return self.run.wrong is not None or self.old.wrong is not None

    @property
    def old_verdict(self) -> str:
        """The same of the old design."""
        return "wrong" if self.old.wrong else self.verdict

    @property
    def roots(self) -> str:
        """The root in use, special roots and all down to the first shadow page, in words."""
        links = self.run.chain
        special = next((at for at, link in enumerate(links) if link.gfn is not None), 0)
        return " > ".join(link.name for link in links[: special + 1])

    @property
    def pages(self) -> str:
        """Shadow pages made, by level and quadrant: ``4d:1`` a direct one, ``2q1:1`` of quadrant 1."""
        return " ".join(f"{short}:{number}" for short, number in self.run.pages_by_level.items())

    def record(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        run, old = self.run, self.old
        return {
            "case": self.case.name,
            "host": self.case.host,
            "guest": self.case.guest,
            "l2": self.case.l2 or None,
            "design": self.design.name,
            "verdict": self.verdict,
            "note": self.case.note or None,
            "first_wrong": run.wrong._asdict() if run.wrong else None,
            "judged": run.judged,
            "shadow_pages": run.shadow_pages,
            "pages": run.created,
            "chain": [link._asdict() for link in run.chain],
            "events": run.counts,
            "sync": sync_counts(run.machine.kvm).record(),
            OLD_DESIGN: {
                "verdict": self.old_verdict,
                "first_wrong": old.wrong._asdict() if old.wrong else None,
                "passthrough_words": old.passthrough,
                "events": old.events,
                "first_other_event": old.first,
                "shadow_pages": run.shadow_pages + old.pages,
            },
        }


def read_case(case: Case) -> Scenario | KernelRecording:
    """Return a case's scenario, or the recording that holds it, changed as the case says.

    Raises
    ------
    InputError
        A recording cannot be read.
    """
    if case.scenario is not None:
        return case.scenario()
    own = case.recording.endswith(SUFFIXES)
    recording = read_recording(Path(case.recording) if own else paths.data(f"{case.recording}{_SUFFIX}"))
    if case.change is None:
        return recording
    return replace(recording, scenario=case.change(recording.scenario))


def scenario_of(work: Scenario | KernelRecording) -> Scenario:
    """Return the scenario in what :func:`read_case` returned."""
    return work if isinstance(work, Scenario) else work.scenario


def read_boot(case: Case) -> Stream:
    """Return the recorded boot that a case replays.

    Raises
    ------
    InputError
        It cannot be read.
    """
    return load_stream(paths.data(f"stream/{case.stream}.npz"))


def run_work(
    work: Scenario | KernelRecording,
    design: RoleDesign | str = "passthrough",
    *,
    kernel: Kernel | None = None,
) -> CaseRun:
    """Run what :func:`read_case` returned: a scenario is judged by its tables, a recording by what it saw.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    if isinstance(work, Scenario):
        return run_case(work, design, kernel=kernel)
    return run_recorded(work, design, kernel=kernel)


def row(case: Case, design: RoleDesign | str = "passthrough", *, kernel: Kernel | None = None) -> Row:
    """Run a case under a design, the default one if none is given, and under the old one.

    Raises
    ------
    InputError
        A recording cannot be read, or the design is unknown.
    """
    work, chosen = read_case(case), design_of(design)
    run = run_work(work, chosen, kernel=kernel)
    default = run if run.wrong is None or chosen is DEFAULT else run_work(work, DEFAULT, kernel=kernel)
    old = contrast(run, run_work(work, OLD_DESIGN, kernel=kernel))
    return Row(case, chosen, run, old, run.wrong is not None and run.wrong == default.wrong)
