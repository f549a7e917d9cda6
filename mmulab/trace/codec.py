"""Plain values as JSON and back: what a machine's state and a recording are made of.

Besides JSON's own values there are tuples, bytes, dictionaries with any keys,
enumerators, records (dataclasses and NamedTuples) and objects by their
attributes, all of them of the classes in :mod:`mmulab.trace.known`. Records that
cannot change are kept once, in a table of :class:`Constants`, because a
checkpoint names the same paging configuration again and again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from enum import Enum
from typing import Any

from mmulab.errors import InputError
from mmulab.trace.known import AGAIN, ENUMS, OBJECTS, RECORDS, check, find, name_of, record_fields

Json = Any


class Constants:
    """Records that cannot change, each kept once.

    Attributes
    ----------
    encoded : list
        For a file.
    """

    def __init__(self, encoded: list[Json] | None = None) -> None:
        self.encoded: list[Json] = []
        self._values: list[Any] = []
        self._numbers: dict[str, int] = {}
        for item in encoded or []:
            self.encoded.append(item)
            self._values.append(_decode_record(item, self))
            self._numbers[repr(self._values[-1])] = len(self._values) - 1

    def number(self, value: Any) -> int:
        """Return the place of `value`, which gets one if it has none."""
        key = repr(value)  # unlike equality it tells True from 1
        if key not in self._numbers:
            encoded = _encode_record(value, self)
            self._numbers[key] = len(self.encoded)
            self.encoded.append(encoded)
            self._values.append(value)
        return self._numbers[key]

    def value(self, number: int) -> Any:
        """Return the record at a place.

        Raises
        ------
        IndexError
        """
        if type(number) is not int or not 0 <= number < len(self._values):
            raise IndexError(f"constant {number!r} of {len(self._values)}")
        return self._values[number]


def encode(value: Any, constants: Constants) -> Json:
    """Return `value` as JSON has it.

    Raises
    ------
    TypeError
        A value of a kind that no recording can hold.
    """
    kind = type(value)
    if value is None or kind in (int, bool, str, float):
        return value
    if kind is list:
        return [encode(item, constants) for item in value]
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, constants)
    name = name_of(kind)
    if isinstance(value, Enum) and name in ENUMS:
        return {"e": [name, value.value]}
    if name in RECORDS:
        if _is_frozen(kind):
            return {"c": constants.number(value)}
        return _encode_record(value, constants)
    if name in OBJECTS:
        attributes = {attribute: getattr(value, attribute) for attribute in OBJECTS[name][1]}
        return {"o": [name, {key: encode(item, constants) for key, item in attributes.items()}]}
    raise TypeError(f"a recording cannot hold {value!r} of type {kind.__name__}")


def decode(item: Json, constants: Constants) -> Any:
    """Return the value that `item` stands for.

    Raises
    ------
    InputError
        A class that no recording may hold, a field that it does not have, or a
        value that its annotation does not allow.
    LookupError, TypeError, ValueError
        `item` is nothing that :func:`encode` returns.
    """
    if isinstance(item, list):
        return [decode(part, constants) for part in item]
    if not isinstance(item, dict):
        return item
    ((tag, content),) = item.items()
    if tag == "c":
        return constants.value(content)
    if tag == "r":
        return _decode_record(item, constants)
    return _DECODERS[tag](content, constants)


def _encode_dict(value: dict[Any, Any], constants: Constants) -> Json:
    return {"d": [[encode(k, constants), encode(v, constants)] for k, v in value.items()]}


def _is_frozen(kind: type) -> bool:
    return issubclass(kind, tuple) or bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _encode_record(value: Any, constants: Constants) -> Json:
    kind = type(value)
    content = {name: encode(getattr(value, name), constants) for name in record_fields(kind)}
    return {"r": [name_of(kind), content]}


def _decode_record(item: Json, constants: Constants) -> Any:
    name, content = item["r"]
    kind = find(RECORDS, name)
    values = _checked(name, content, record_fields(kind), constants)
    return kind(**values)


def _decode_object(content: Json, constants: Constants) -> Any:
    name, attributes = content
    kind, hints = find(OBJECTS, name)
    made = kind.__new__(kind)
    for attribute, value in _checked(name, attributes, hints, constants).items():
        setattr(made, attribute, value)
    return made


def _checked(
    name: str, content: dict[str, Json], hints: dict[str, Any], constants: Constants
) -> dict[str, Any]:
    """Return the fields of a record or an object: exactly the known ones, each as it may be."""
    if list(content) != list(hints):
        raise InputError(f"{name} has other fields in mmulab; {AGAIN}")
    values = {field: decode(part, constants) for field, part in content.items()}
    for field, value in values.items():
        check(value, hints[field], f"{field} of {name}")
    return values


def _decode_enum(content: Json, constants: Constants) -> Any:
    return find(ENUMS, content[0])(content[1])


_ENCODERS: dict[type, Callable[[Any, Constants], Json]] = {
    tuple: lambda value, constants: {"t": [encode(item, constants) for item in value]},
    dict: _encode_dict,
    bytes: lambda value, constants: {"b": base64.b85encode(value).decode("ascii")},
    bytearray: lambda value, constants: {"a": base64.b85encode(bytes(value)).decode("ascii")},
}
_DECODERS: dict[str, Callable[[Any, Constants], Any]] = {
    "t": lambda content, constants: tuple(decode(item, constants) for item in content),
    "d": lambda content, constants: {decode(k, constants): decode(v, constants) for k, v in content},
    "b": lambda content, constants: base64.b85decode(content),
    "a": lambda content, constants: bytearray(base64.b85decode(content)),
    "e": _decode_enum,
    "o": _decode_object,
}
