"""YAML read strictly: values with their lines, and each refusal with its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.report.document import read

TEXT = """\
name: t
rows:
  - {base: 1, scale: 0.5}
  - &again
    base: 2
    flag: true
more: *again
"""


def test_values_and_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    found = read(path)
    again = {"base": 2, "flag": True}
    assert found.value == {"name": "t", "rows": [{"base": 1, "scale": 0.5}, again], "more": again}
    assert [type(value) for value in found.value["rows"][0].values()] == [int, float]
    assert found.lines["rows", 0, "scale"] == 3
    assert found.lines["rows", 1, "flag"] == 6
    assert found.lines["more",] == 7
    assert str(found.error(("rows", 1, "flag"), "no")) == f"{path}: line 6: rows.1.flag: no"


REFUSED = {
    "": "x.yaml: empty; write an experiment",
    "a: 1\na: 2\n": "x.yaml: line 2: the key 'a' stands here twice; keep one",
    "a: {1: 2}\n": "x.yaml: line 1: a: the key '1' is no string; quote it",
    "a: {on: 2}\n": "x.yaml: line 1: a: the key 'on' is no string; quote it",
    "a: {[b]: 2}\n": "x.yaml: line 1: a: the key 'tag:yaml.org,2002:seq' is no string; quote it",
    "a:\n- .nan\n": "x.yaml: line 2: a.0: '.nan' is no string, number or bool; quote it",
    "a: 2020-01-01\n": "x.yaml: line 1: a: '2020-01-01' is no string, number or bool; quote it",
    "a: ~\n": "x.yaml: line 1: a: '~' is no string, number or bool; quote it",
    "a: &b [*b]\n": "x.yaml: line 1: an alias to what it is part of",
    "a: [\n": "x.yaml: line 2: no YAML (",
    "a: !!python/object:os.system x\n": "x.yaml: line 1: ",
    "[" * 5000: "x.yaml: ",  # libyaml has a limit of its own, else Python's is reached
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as found:
        read(tmp_path / "x.yaml")
    assert str(found.value).startswith(f"{tmp_path}/{REFUSED[text]}")
    assert "\n" not in str(found.value)


def test_a_schema_is_checked_and_the_first_difference_named(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    number = {"type": "integer", "description": "a whole number"}
    rules = {"type": "object", "required": ["a"], "properties": {"a": number, "b": number}}
    schema.write_text(json.dumps({**rules, "additionalProperties": False, "description": "a mapping"}))
    for text, said in {
        "b: 1\n": "x.yaml: line 1: the key 'a' is missing; add it",
        "a: 1\nc: 1\n": "x.yaml: line 2: c: unknown key; the keys are a, b",
        "b: no\na: x\n": "x.yaml: line 1: b: False is not a whole number",
        "a: 1\nb: 2\n": None,
    }.items():
        (tmp_path / "x.yaml").write_text(text)
        document = read(tmp_path / "x.yaml")
        if said is None:
            document.check(schema)
        else:
            with pytest.raises(InputError) as found:
                document.check(schema)
            assert str(found.value) == f"{tmp_path}/{said}"
