"""``mmulab doctor``: a line for each thing, and what its exit code speaks of."""

from __future__ import annotations

import json

import pytest

from mmulab.checks import Check
from mmulab.cli import doctor as module
from mmulab.cli.doctor import Group
from tests.conftest import CommandLine

HERE, LACKS, SPARE = Check("a", True, "1"), Check("b", False, "get b"), Check("c", False, "get c", False)


def groups(monkeypatch: pytest.MonkeyPatch, **found: list[Check]) -> None:
    """Let groups of the real names and purposes find other things."""
    for name, checks in found.items():
        monkeypatch.setitem(module.GROUPS, name, module.GROUPS[name]._replace(look=lambda c=checks: c))


@pytest.fixture(autouse=True)
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, **{name: [HERE, SPARE] for name in module.GROUPS})


def test_lines_begin_with_what_is_so(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, dev=[HERE, LACKS, SPARE])
    done = command("doctor", "dev")
    assert done.stdout.splitlines() == [
        "dev: tests and lint: no",
        "  yes a: 1",
        "  no  b: get b",
        "  -   c: get c",
    ]


@pytest.mark.parametrize("name", module.GROUPS)
def test_the_exit_code_speaks_of_what_notebooks_need(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert command("doctor").returncode == 0
    groups(monkeypatch, **{name: [LACKS]})
    needed = name in {"python", "widgets", "notebooks"}
    assert command("doctor").returncode == int(needed)
    assert command("doctor", name).returncode == 1
    others = [other for other in module.GROUPS if other != name]
    done = command("doctor", *others)
    assert done.returncode == 0
    assert f"{name}: " not in done.stdout


def test_json_says_the_same(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(monkeypatch, record=[LACKS])
    said = json.loads(command("doctor", "--json").stdout)
    assert said["ok"]
    assert list(said["groups"]) == list(module.GROUPS)
    assert said["groups"]["record"] == {
        "ok": False,
        "checks": [{"name": "b", "ok": False, "says": "get b", "needed": True}],
    }
    assert not json.loads(command("doctor", "record", "--json").stdout)["ok"]


def test_another_group_is_refused(command: CommandLine) -> None:
    said = command.error("doctor", "ghost")
    assert "'ghost' is not one of 'python', 'widgets', 'notebooks', 'cluster', 'dev', 'record'" in said


def test_this_machine_is_looked_at(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert all(isinstance(group, Group) for group in module.GROUPS.values())
    done = command("doctor", "record", "cluster", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == int(not said["ok"])
    names = [check["name"] for check in said["groups"]["record"]["checks"]]
    assert names[:3] == ["emulator", "compiler", "packages"]
    assert said["groups"]["cluster"]["ok"], "distributed is a dependency"
