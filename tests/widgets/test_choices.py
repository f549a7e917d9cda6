"""Lists of a notebook's parameters: what is chosen counts at the next run, until the cell is edited."""

from __future__ import annotations

from typing import Any

from mmulab.report.parameters import check, choice, integer

NAMES = {"parity": 1, "copied": 2}


def run(shell: dict[str, Any], **written: object) -> Any:
    """Run the parameters' cell, then the check."""
    shell.update(written)
    return check(shell, rule=choice(NAMES), seed=integer())


def test_a_choice_counts_at_the_next_run() -> None:
    shell: dict[str, Any] = {}
    lists = run(shell, rule="parity", seed=1).lists
    assert list(lists) == ["rule"], "no list can have all integers"
    assert lists["rule"].options == ("parity", "copied")
    lists["rule"].value = "copied"
    assert shell["rule"] == "parity", "not before: what follows from it is not made again yet"
    again = run(shell, rule="parity", seed=2)
    assert (shell["rule"], shell["seed"]) == ("copied", 2)
    assert again.lists["rule"].value == "copied"
    assert run(shell).values["rule"] == "copied", "the check's cell alone"


def test_a_choice_taken_back_is_none() -> None:
    shell: dict[str, Any] = {}
    run(shell, rule="parity", seed=1).lists["rule"].value = "copied"
    run(shell, rule="parity", seed=1).lists["rule"].value = "parity"
    run(shell, rule="parity", seed=1)
    assert shell["rule"] == "parity"


def test_an_edited_cell_comes_before_a_choice() -> None:
    shell: dict[str, Any] = {}
    made = check(shell | {"rule": "a"}, rule=choice("abc"))
    assert made.values == {"rule": "a"}
    shell["rule"] = "a"
    check(shell, rule=choice("abc")).lists["rule"].value = "b"
    shell["rule"] = "c"
    check(shell, rule=choice("abc"))
    assert shell["rule"] == "c"
    shell["rule"] = "a"
    check(shell, rule=choice("abc"))
    assert shell["rule"] == "a", "and the choice is gone"


def test_it_says_what_a_choice_stands_in_place_of() -> None:
    made = run({}, rule="parity", seed=1)
    said = made.widget.children[-1]
    assert "Run All Cells" in said.value
    assert "copied" not in said.value
    made.lists["rule"].value = "copied"
    assert "<code>rule</code> is <b>copied</b> in place of parity" in said.value


def test_a_value_of_ones_own_is_in_the_list() -> None:
    from mmulab.report.parameters import role_design

    made = check({"design": "own.py:Mine"}, design=role_design())
    assert made.lists["design"].options[0] == made.lists["design"].value == "own.py:Mine"
    assert "passthrough" in made.lists["design"].options


def test_without_a_live_view_the_values_stand_there() -> None:
    bundle = run({}, rule="parity", seed=1)._repr_mimebundle_()
    html = bundle["text/html"]
    assert html == '<p class="ran-with">Run with <code>rule</code> parity, <code>seed</code> 1.</p>'
    assert bundle["text/plain"] == "rule='parity', seed=1"
