"""A sequence that shows a bug, run with the bug and without: what each op does, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from mmulab import paths
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.hunt import IN_GUESTS
from mmulab.check.trial import run_trial
from mmulab.conform.diff import scenario_run
from mmulab.kvm.bug import Bug
from mmulab.kvm.kernel import Kernel
from mmulab.lab.first_wrong import record_until
from mmulab.lab.known_bugs.follow import Followed, switched
from mmulab.lab.side_by_side import SideBySide
from mmulab.report.results import Table
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import format_step
from mmulab.scenario.runner import Result
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import SUFFIX, format_scenario, read_scenario
from mmulab.trace.recording import Moment, Recording
from mmulab.trace.sentence import op_sentence, outcome_sentence
from mmulab.widgets.stepper import Stepper
from mmulab.widgets.steps import Steps
from mmulab.widgets.story import telling_moment
from mmulab.widgets.wrong_access import Where, moments, wrong_access

__all__ = [
    "FOUND",
    "SAVED",
    "SOURCES",
    "WATCHED_BY",
    "Replayed",
    "Told",
    "replay",
    "saved",
    "saved_path",
    "saved_table",
    "sequence_of",
]

SOURCES = SAVED, FOUND = "saved", "found"
"""Which sequence is stepped: the one in ``data/sequences``, or what a search has just found."""
_FOLDER = "sequences"
MOST_BEFORE = 11
"""Ops before the wrong one of which a moment is shown."""
WATCHED_BY: dict[FindingKind, str] = {
    FindingKind.OUTCOME: "the oracle",
    FindingKind.STALE: "the TLB that keeps all it may",
    FindingKind.INVARIANT: "an invariant",
    FindingKind.ASSERTION: "an assertion of the kernel's",
    FindingKind.FAILURE: "the model, which came to a stop",
}
"""Who noticed, by the kind of a finding."""
_MEANS: dict[FindingKind, str] = {
    FindingKind.OUTCOME: "The guest's own tables and registers do not allow this outcome",
    FindingKind.STALE: "A processor that keeps every translation it may goes wrong here",
    FindingKind.INVARIANT: "The MMU's own books do not agree from here on",
    FindingKind.ASSERTION: "The kernel itself says that this must not be",
    FindingKind.FAILURE: "The MMU follows an entry that should not be there, and the model cannot go on",
}


class Told(NamedTuple):
    """A step on both kernels, in words.

    Attributes
    ----------
    step : int
    text, words : str
        As a scenario has it, and as a sentence.
    outcomes : tuple of str
        With the bug and without; empty: that run did not come so far.
    """

    step: int
    text: str
    words: str
    outcomes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A sequence, run with the bug and without.

    Attributes
    ----------
    bug : Bug
    kernel, right : Kernel
        With the bug, and without.
    scenario : Scenario
    source : str
        Where the sequence is from.
    finding, other : Finding or None
        What is wrong with the bug, and without.
    steps : tuple of Told
    """

    bug: Bug
    kernel: Kernel
    right: Kernel
    scenario: Scenario
    source: str
    finding: Finding | None
    other: Finding | None
    steps: tuple[Told, ...]

    @property
    def shows(self) -> bool:
        """Whether the sequence shows the bug: wrong with it, and not, or later, without."""
        return self.finding is not None and (self.other is None or self.other.op > self.finding.op)

    @property
    def wrong(self) -> Told | None:
        """The step that is wrong."""
        if self.finding is None:
            return None
        return next((step for step in self.steps if step.step == self.finding.op), None)

    def sentences(self) -> list[str]:
        """Return the two outcomes of the wrong op, explained."""
        finding, wrong = self.finding, self.wrong
        if finding is None:
            return [f"With {self.bug.id} nothing is wrong in this sequence: it does not show the bug."]
        words = finding.text if wrong is None else wrong.words
        seen, right = ("", "") if wrong is None else wrong.outcomes
        what = f"{finding.said} ({WATCHED_BY[finding.kind]}, {finding.name})"
        with_it = f"With {self.bug.id}: {seen or 'the op does not end'}."
        told = [f"Op {finding.op}: {words}.", f"{with_it} {_MEANS[finding.kind]}: {what}."]
        if self.other is not None:
            return [*told, f"Without {self.bug.id}, too, something is wrong: {self.other}."]
        same = "the same outcome" if seen == right else right
        return [*told, f"Without {self.bug.id}: {same}, and nothing is wrong."]

    def html(self) -> str:
        """Return the sequence and the two outcomes as HTML."""
        words = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences())
        heads = ("op", "", "what happens", f"with {self.bug.id}", "without")
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
        body = "".join(map(self._row, self.steps))
        before = escape(_header(self.scenario))
        return (
            f"<p>The sequence is {escape(self.source)}: {len(self.scenario.steps)} ops.</p>{words}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<details><summary>The guest before the first op</summary><pre>{before}</pre></details>"
        )

    def _row(self, step: Told) -> str:
        cells = [str(step.step), f"<code>{escape(step.text)}</code>", escape(step.words)]
        cells += map(escape, step.outcomes)
        wrong = self.finding is not None and step.step == self.finding.op
        if wrong:
            cells = [f"<b>{cell}</b>" for cell in cells]
        style = ' style="background: #fff3bf"' if wrong else ""
        return f"<tr{style}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    def record(self) -> tuple[Recording, list[tuple[int, str]]]:
        """Run it with the bug once more, recorded, up to the wrong op.

        Returns
        -------
        recording : Recording
        told : list of (int, str)
            Numbers and titles of the moments that tell how it went wrong: one of each op before, then the
            wrong op's. The last is its end; where the MMU fails in it, the end of the op before.

        Raises
        ------
        InputError
            The MMU fails before anything can be looked at.
        """
        last = len(self.scenario.steps) - 1 if self.finding is None else self.finding.op
        recording, ops = record_until(replace(self.scenario, source=self.bug.id), self.kernel, last)
        before = [step for step in range(max(0, last - MOST_BEFORE), last) if step in ops]
        told = [(telling_moment(recording, [ops[step]]), _title(self.steps[step])) for step in before]
        if last in ops:
            return recording, [*told, *moments(recording, Where(ops[last], f"op {last}"))]
        end = recording.number(Moment(ops[max(ops)], None))
        return recording, [*told, (end, f"before op {last}, in which the MMU fails")]

    def stepper(self) -> Stepper:
        """Return the run with the bug, to step through; it stands where the wrong op has ended."""
        recording, told = self.record()
        return Stepper(recording, at=told[-1][0])

    def story(self, name: str) -> Steps:
        """Return the moments that tell how it went wrong, at first the last; they need no Jupyter.

        Parameters
        ----------
        name : str
            Of the steps; no two on a page have one name.

        Raises
        ------
        InputError
            The MMU fails before anything can be looked at.
        """
        recording, told = self.record()
        steps = wrong_access(recording, told, name=name, verdict=" ".join(self.sentences()))
        steps.at = len(told) - 1
        return steps

    def sides(self) -> SideBySide:
        """Return both runs side by side, event by event; the wrong op stands open."""
        runs = scenario_run(self.scenario, self.kernel), scenario_run(self.scenario, self.right)
        names = (f"with {self.bug.id}", "with its fix")
        both = SideBySide.of("ops", names, runs)
        wrong = self.finding
        numbers = [op.number for op in both.ops]
        if wrong is None or wrong.op not in numbers:
            return both
        return SideBySide.of("ops", names, runs, at=str(wrong.op))


def replay(bug: str, kernel: str, scenario: Scenario, source: str) -> Replayed:
    """Run a sequence with a bug and without.

    Parameters
    ----------
    bug : str
    kernel : str
        The right one.
    scenario : Scenario
    source : str
        Where it is from.

    Raises
    ------
    InputError
        The bug or the kernel is unknown, or the scenario is not modelled on its host.
    """
    found, wrong, right = switched(bug, kernel)
    ends: list[Finding | None] = []
    seen: list[dict[int, Result]] = []
    for each in (wrong, right):
        results: dict[int, Result] = {}
        config = machine_config(scenario, each)
        ends.append(run_trial(scenario, config, IN_GUESTS, _keep_in(results)).finding)
        seen.append(results)
    steps = []
    for number, step in enumerate(scenario.steps):
        outcomes = [outcome_sentence(known[number].outcome) if number in known else "" for known in seen]
        words = op_sentence(step.op)
        steps.append(Told(number, format_step(step), words, (outcomes[0], outcomes[1])))
    return Replayed(found, wrong, right, scenario, source, ends[0], ends[1], tuple(steps))


def _keep_in(results: dict[int, Result]) -> Callable[[Result], None]:
    """Return what keeps each step's last result."""

    def keep(result: Result) -> None:
        results[result.index] = result

    return keep


def saved_path(bug: str) -> Path | None:
    """Return the file of a bug's saved sequence; None: there is none."""
    path = paths.checkout() / "data" / _FOLDER / f"{bug}{SUFFIX}"
    return path if path.is_file() else None


def sequence_of(followed: Followed, kernel: str, prefer: str = SAVED) -> Replayed | None:
    """Run the sequence of a bug: the saved one, or what a search found; None: there is neither.

    Parameters
    ----------
    followed : Followed
    kernel : str
        The right one.
    prefer : str
        One of :data:`SOURCES`; the other one takes its place if there is none.
    """
    known: dict[str, Replayed] = {}
    path, trouble, bug = saved_path(followed.bug.id), followed.trouble, followed.bug.id
    for source in (prefer, SAVED, FOUND):
        if source == SAVED and path is not None:
            known[source] = replay(bug, kernel, read_scenario(path), f"data/{_FOLDER}/{path.name}")
        elif source == FOUND and trouble is not None:
            known[source] = replay(bug, kernel, trouble.scenario, "what the search has just found")
        if known:
            return known[source]
    return None


def saved(bugs: Sequence[str], kernel: str) -> list[Replayed]:
    """Run the saved sequence of each bug that has one, with the bug and without.

    Parameters
    ----------
    bugs : sequence of str
    kernel : str
        The right one.

    Raises
    ------
    InputError
        A file is no scenario, or the kernel is unknown.
    """
    files = [(bug, saved_path(bug)) for bug in bugs]
    return [
        replay(bug, kernel, read_scenario(path), f"data/{_FOLDER}/{path.name}")
        for bug, path in files
        if path is not None
    ]


def saved_table(replayed: Sequence[Replayed]) -> Table:
    """Return what each saved sequence does."""
    rows: list[list[Any]] = []
    for one in replayed:
        finding, other = one.finding, one.other
        told = ("nobody", None) if finding is None else (WATCHED_BY[finding.kind], finding.name)
        right = "nothing" if other is None else other.name
        rows.append([one.bug.id, len(one.scenario.steps), *told, right, one.shows])
    columns = ["bug", "ops", "noticed by", "name", "wrong with the fix", "shows the bug"]
    return Table("sequences", columns, rows, "The saved sequences, each run now.")


def _title(step: Told) -> str:
    return f"op {step.step}: {step.words}"


def _header(scenario: Scenario) -> str:
    """Return a scenario's text up to its ops."""
    return format_scenario(scenario).partition("\nops\n")[0]
