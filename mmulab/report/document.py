"""A YAML file read strictly: each value with the line it stands on, no key twice.

Anchors and aliases are taken, for they spare a long list the second writing;
how much they unfold to is limited.

Source: YAML 1.1, as PyYAML reads it; JSON Schema 2020-12
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmulab import files, limits
from mmulab.errors import InputError, named, quoted

__all__ = ["Document", "read"]

Place = tuple[str | int, ...]
_STRING = "tag:yaml.org,2002:str"
_SCALARS = (str, int, float, bool)
_VALUES = 1_000_000
"""What a file's values may be at most, all aliases unfolded."""
_IRIS = "rfc3987_syntax"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds.

    Attributes
    ----------
    path : pathlib.Path
    value : object
        Dicts, lists, strings, finite numbers and bools.
    lines : dict of place to int
        The line of each value; a place is the keys and indices that lead there.
    """

    path: Path
    value: Any
    lines: dict[Place, int]

    def error(self, place: Sequence[str | int], message: str) -> InputError:
        """Return the error that says `message` of the value at `place`."""
        return _error(self.path, self.lines.get(tuple(place)), place, message)

    def check(self, schema: Path) -> None:
        """Compare the file with a JSON schema, whose descriptions say what is expected.

        Raises
        ------
        InputError
            The first value that differs, with line, place and what would be right.
        """
        validator = load_jsonschema().Draft202012Validator(json.loads(schema.read_text("utf-8")))
        errors = sorted(validator.iter_errors(self.value), key=lambda error: self._order(error.absolute_path))
        if errors:
            place, message = _said(errors[0])
            raise self.error(place, message)

    def _order(self, place: Sequence[str | int]) -> tuple[int, list[str]]:
        return self.lines.get(tuple(place), 0), [str(part) for part in place]


def read(path: Path) -> Document:
    """Read the YAML file at `path`.

    Raises
    ------
    InputError
        It cannot be read, is no YAML, has a key twice, a key that is no string, or a value that is
        no string, finite number, bool, list or mapping.
    """
    text = files.read_text(path, limits.EXPERIMENT_BYTES)
    try:
        node = yaml.compose(text, Loader=_LOADER)
        if node is None:
            raise InputError(f"{named(path)}: empty; write an experiment")
        _count(node, {}, path)
        lines: dict[Place, int] = {}
        return Document(path, _Reader(path, lines).value(node, ()), lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = quoted(getattr(error, "problem", None) or error)
        raise _error(path, mark and mark.line + 1, (), f"no YAML ({problem})") from error
    except RecursionError as error:
        raise InputError(f"{named(path)}: nested too deep") from error


def load_jsonschema() -> Any:
    """Import jsonschema without its check of IRIs, whose grammar takes seconds; no schema here has one.

    Nor has that of notebooks: call this before nbformat is imported, which imports jsonschema.
    """
    absent = _IRIS not in sys.modules
    if absent:
        sys.modules[_IRIS] = None  # type: ignore[assignment]  # how the import system notes "not there"
    try:
        return importlib.import_module("jsonschema")
    finally:
        if absent:
            del sys.modules[_IRIS]


def _error(path: Path, line: int | None, place: Sequence[str | int], message: str) -> InputError:
    parts = [named(path)]
    if line is not None:
        parts.append(f"line {line}")
    if place:
        parts.append(quoted(".".join(str(part) for part in place)))
    return InputError(": ".join((*parts, message)))


def _count(node: Any, known: dict[int, int | None], path: Path) -> int:
    """Return how many values a node unfolds to; refuse one that is within itself, and too many."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise _error(path, node.start_mark.line + 1, (), "an alias to what it is part of")
        return count
    known[id(node)] = None
    parts: Iterator[Any] = iter(())
    if isinstance(node, yaml.MappingNode):
        parts = (part for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        parts = iter(node.value)
    count = 1 + sum(_count(part, known, path) for part in parts)
    if count > _VALUES:
        raise _error(path, node.start_mark.line + 1, (), f"more than {_VALUES} values, the limit")
    known[id(node)] = count
    return count


class _Reader:
    """Turns nodes into values and notes their lines."""

    def __init__(self, path: Path, lines: dict[Place, int]) -> None:
        self._path = path
        self._lines = lines
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: Any, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(part, (*place, number)) for number, part in enumerate(node.value)]
        value = self._scalars.construct_object(node)
        if not isinstance(value, _SCALARS) or (isinstance(value, float) and not math.isfinite(value)):
            shown = quoted(repr(node.value))
            raise self._error(node, place, f"{shown} is no string, number or bool; quote it")
        return value

    def _mapping(self, node: Any, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != _STRING:
                shown = quoted(key.value if isinstance(key, yaml.ScalarNode) else key.tag)
                raise self._error(key, place, f"the key '{shown}' is no string; quote it")
            if key.value in found:
                raise self._error(key, place, f"the key '{quoted(key.value)}' stands here twice; keep one")
            self._lines[(*place, key.value)] = key.start_mark.line + 1
            found[key.value] = self.value(value, (*place, key.value))
        return found

    def _error(self, node: Any, place: Place, message: str) -> InputError:
        return _error(self._path, node.start_mark.line + 1, place, message)


def _said(error: Any) -> tuple[list[str | int], str]:
    """Return place and words of what a schema does not allow."""
    place = list(error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in known)
        return [*place, unknown], f"unknown key; the keys are {', '.join(known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return place, f"the key '{missing}' is missing; add it"
    if error.validator == "oneOf":
        keys = " or ".join(f"'{key}'" for part in error.validator_value for key in part["required"])
        return place, f"exactly one key of {keys} must be there"
    return place, f"{quoted(repr(error.instance))} is not {error.schema['description']}"
