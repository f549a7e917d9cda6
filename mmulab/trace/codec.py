"""Plain values as JSON and back: what a machine's state and a recording are made of.

Besides JSON's own values there are tuples, bytes, dictionaries with any keys,
enumerators, mmulab's functions by name, records (its dataclasses and
NamedTuples) and other objects of its classes by their attributes. Records that
cannot change are kept once, in a table of :class:`Constants`, because a
checkpoint names the same paging configuration again and again.
"""

from __future__ import annotations

import base64
import importlib
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType
from typing import Any

from mmulab.errors import InputError

Json = Any
_PREFIX = "mmulab."


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
        """Return the record at a place."""
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
    if isinstance(value, Enum):
        return {"e": [name_of(kind), value.value]}
    if _is_record(kind):
        if _is_frozen(kind):
            return {"c": constants.number(value)}
        return _encode_record(value, constants)
    if isinstance(value, FunctionType) and _found_again(value):
        return {"f": name_of(value)}
    if kind.__module__.startswith(_PREFIX) and hasattr(value, "__dict__"):
        return {"o": [name_of(kind), {name: encode(item, constants) for name, item in vars(value).items()}]}
    raise TypeError(f"a recording cannot hold {value!r} of type {kind.__name__}")


def decode(item: Json, constants: Constants) -> Any:
    """Return the value that `item` stands for."""
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


def name_of(kind: type | FunctionType) -> str:
    """Return a name by which a class or function of mmulab can be found again."""
    return f"{kind.__module__.removeprefix(_PREFIX)}:{kind.__qualname__}"


def _found_again(function: FunctionType) -> bool:
    return function.__module__.startswith(_PREFIX) and function.__qualname__.isidentifier()


def _named(name: str) -> Any:
    """Return the class or function of mmulab that :func:`name_of` named.

    Raises
    ------
    InputError
        There is none: the recording comes from another version, or from elsewhere.
    """
    module, _, qualname = name.partition(":")
    try:
        found = getattr(importlib.import_module(_PREFIX + module), qualname)
    except (ImportError, AttributeError) as error:
        raise InputError(f"mmulab has no {name}; the recording is of another version") from error
    if getattr(found, "__module__", "") != _PREFIX + module:
        raise InputError(f"{name} is nothing that a recording may hold")
    return found


def class_of(name: str) -> Any:
    """Return the record, enumeration or other class that :func:`name_of` named.

    Raises
    ------
    InputError
        There is none: the recording comes from another version, or from elsewhere.
    """
    found = _named(name)
    if not isinstance(found, type):
        raise InputError(f"{name} is nothing that a recording may hold")
    return found


def _decode_object(content: Json, constants: Constants) -> Any:
    name, attributes = content
    kind = class_of(name)
    made = kind.__new__(kind)
    for attribute, item in attributes.items():
        setattr(made, attribute, decode(item, constants))
    return made


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (
        is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def _is_frozen(kind: type) -> bool:
    return issubclass(kind, tuple) or bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def record_fields(kind: type) -> dict[str, Any]:
    """Return the names of a NamedTuple's or dataclass's fields with their types, in order."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind._fields  # type: ignore[attr-defined]
    return {name: hints[name] for name in names}


def _encode_record(value: Any, constants: Constants) -> Json:
    kind = type(value)
    names = [f.name for f in fields(value)] if is_dataclass(value) else value._fields
    content = {name: encode(getattr(value, name), constants) for name in names}
    return {"r": [name_of(kind), content]}


def _decode_record(item: Json, constants: Constants) -> Any:
    name, content = item["r"]
    kind = class_of(name)
    try:
        return kind(**{key: decode(part, constants) for key, part in content.items()})
    except TypeError as error:
        raise InputError(f"mmulab's {name} has other fields; the recording is of another version") from error


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
    "e": lambda content, constants: class_of(content[0])(content[1]),
    "f": lambda content, constants: _named(content),
    "o": _decode_object,
}
