"""A sequence with a bug and without: the wrong op, both outcomes in words, and the events side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab import paths
from mmulab.check.finding import FindingKind
from mmulab.check.hunt import Hunted, Job, Trouble
from mmulab.errors import InputError
from mmulab.kvm.bugs import find_bug
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab import first_wrong
from mmulab.lab.known_bugs.follow import Followed
from mmulab.lab.known_bugs.sequence import (
    FOUND,
    SAVED,
    WATCHED_BY,
    Replayed,
    replay,
    saved,
    saved_table,
    sequence_of,
)
from mmulab.report.page import remote_references
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import parse_scenario
from mmulab.trace.recording import Recording

B14 = (Path(__file__).parents[2] / "kvm/bugs/B14.mmu").read_text("utf-8")


@pytest.fixture(scope="module")
def b13(root: Path) -> Replayed:
    text = (root / "tests/kvm/bugs/B13.mmu").read_text("utf-8")
    return replay("B13", "6.1.192", parse_scenario(text), "a witness")


def test_the_wrong_op_and_its_outcomes(b13: Replayed) -> None:
    assert b13.shows
    assert b13.finding is not None
    assert (b13.finding.op, b13.finding.kind, b13.other) == (3, FindingKind.OUTCOME, None)
    assert b13.wrong == b13.steps[3]
    assert b13.steps[3].text == "wr u 4 8040200000 1"
    seen, right = b13.steps[3].outcomes
    assert seen.startswith("reaches host address")
    assert right.startswith("the guest gets #PF, error code 0x7")
    assert all(step.outcomes[0] == step.outcomes[1] for step in b13.steps[:3])


def test_the_sentences_tell_both_sides(b13: Replayed) -> None:
    what, with_it, without = b13.sentences()
    assert what == "Op 3: vCPU 0 writes 0x1 (4 bytes) to 0x8040200000 in user mode."
    assert with_it.startswith("With B13: reaches host address")
    assert "The guest's own tables and registers do not allow this outcome: expected #PF 0x7" in with_it
    assert without.startswith("Without B13: the guest gets #PF")
    assert without.endswith("and nothing is wrong.")


def test_html_marks_the_wrong_op_alone(b13: Replayed) -> None:
    html = b13.html()
    assert html.count("background: #fff3bf") == 1
    assert "<b>3</b>" in html
    assert "m8 21000 22065" in html
    assert "wr u 4 8040200000" not in html.partition("<pre>")[2]
    assert remote_references(html) == []


def test_it_is_stepped_at_the_wrong_access(b13: Replayed) -> None:
    stepper = b13.stepper()
    recording = stepper.session.recording
    moment = recording.moment(stepper.at)
    assert moment.event is None
    assert moment.op == len(recording.ops) - 1
    assert "0x8040200000" in stepper.html()
    steps = b13.story("the run")
    assert "With B13: reaches host address" in steps.steps[-1].html
    assert steps.steps[-1].title == "op 3 has ended, and it is wrong"
    assert steps.at == len(steps.steps) - 1
    before = [step.title for step in steps.steps[:3]]
    assert before == [f"op {step.step}: {step.words}" for step in b13.steps[:3]]


def test_words_and_stepper_have_the_same_addresses(b13: Replayed) -> None:
    address = b13.steps[3].outcomes[0].split()[3].rstrip(";")
    assert address.startswith("0x")
    assert f"reaches host address {address}" in b13.stepper().html()


def test_a_model_that_fails_is_shown_up_to_there(b13: Replayed, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = first_wrong.record_judged, {3}

    def fails(scenario: Scenario, *, kernel: Kernel, until: int) -> tuple[Recording, dict[int, int]]:
        if until in failing:
            raise AssertionError("the model follows a freed page")
        return real(scenario, kernel=kernel, until=until)

    monkeypatch.setattr(first_wrong, "record_judged", fails)
    assert b13.record()[1][-1][1] == "before op 3, in which the MMU fails"
    failing.add(2)
    with pytest.raises(InputError, match="B13: the MMU fails in the first op"):
        b13.record()


def test_the_fix_beside_it(b13: Replayed) -> None:
    both = b13.sides()
    assert both.sides == ("with B13", "with its fix")
    assert both.shown is not None
    op = both.ops[both.shown]
    assert (op.number, op.differs) == (3, True)
    assert op.outcomes[0] is not None
    assert op.outcomes[0].startswith("ok")
    assert (op.outcomes[1] or "").startswith("exc vec=e err=7")


def test_the_right_kernel_beside_itself_differs_in_nothing() -> None:
    text = B14.partition("rd u")[0] + "end\n"
    replayed = replay("B14", "6.1.192", parse_scenario(text), "a write")
    assert replayed.finding is None
    assert not replayed.shows
    assert replayed.sentences() == ["With B14 nothing is wrong in this sequence: it does not show the bug."]
    assert replayed.sides().differing == []


def test_an_assertion_that_fires_is_told() -> None:
    replayed = replay("B14", "6.1.192", parse_scenario(B14), "two large pages")
    assert replayed.finding is not None
    assert WATCHED_BY[replayed.finding.kind] in " ".join(replayed.sentences())
    assert replayed.shows


def test_every_kind_of_finding_has_words() -> None:
    assert set(WATCHED_BY) == set(FindingKind)


def followed(scenario: Scenario | None) -> Followed:
    job = Job(find_kernel("6.1+B14"), find_kernel("6.1"), (), 0, 1.0, 1)
    hunted = Hunted(job)
    if scenario is not None:
        replayed = replay("B14", "6.1.192", scenario, "")
        assert replayed.finding is not None
        hunted.found.append(Trouble(replayed.finding, scenario, "large-pae", 9, 1.5, 1.0))
    return Followed(find_bug("B14"), hunted)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that has no sequences yet; the folder for them."""
    folder = tmp_path / "data" / "sequences"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    return folder


def test_saved_or_found_or_nothing(data: Path) -> None:
    scenario = parse_scenario(B14)
    assert sequence_of(followed(None), "6.1.192") is None
    found = sequence_of(followed(scenario), "6.1.192", SAVED)
    assert found is not None
    assert found.source == "what the search has just found"
    (data / "B14.mmu").write_text(B14, "utf-8")
    kept = sequence_of(followed(scenario), "6.1.192", SAVED)
    assert kept is not None
    assert kept.source == "data/sequences/B14.mmu"
    again = sequence_of(followed(scenario), "6.1.192", FOUND)
    assert again is not None
    assert again.source == "what the search has just found"
    other = sequence_of(followed(None), "6.1.192", FOUND)
    assert other is not None
    assert other.source == "data/sequences/B14.mmu"


def test_saved_sequences_are_run(data: Path) -> None:
    (data / "B14.mmu").write_text(B14, "utf-8")
    (data / "B13.mmu").write_text(B14, "utf-8")
    table = saved_table(saved(["B13", "B14", "B24"], "6.1.192"))
    assert [row[0] for row in table.rows] == ["B13", "B14"], "none is saved for B24"
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["B13"] == (3, "nobody", None, "nothing", False)
    assert rows["B14"][0] == 3
    assert rows["B14"][-2:] == ("nothing", True)


def test_a_broken_sequence_is_refused_in_one_line(data: Path) -> None:
    (data / "B14.mmu").write_text("mmulab-scenario 1\nmode 99\n", "utf-8")
    with pytest.raises(InputError) as refused:
        saved(["B14"], "6.1.192")
    assert "\n" not in str(refused.value)
