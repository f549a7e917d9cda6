"""Parameters of a notebook: declared in its tagged cell, checked before and while it runs.

papermill only warns when it is given a parameter that a notebook does not
have, and never looks at values. Two checks stand in for that:

* :func:`resolve` compares what is given with the cell tagged ``parameters``
  before a kernel starts;
* :func:`check`, called by the notebook in the cell after its parameters, refuses
  unknown names and wrong values however the notebook was started, plain
  ``papermill`` included::

      from mmulab.report.parameters import check, choice, integer
      check(globals(), derivation=choice(DERIVATIONS), seed=integer(low=0))
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmulab.errors import InputError, quoted
from mmulab.kvm.roles.design import DESIGNS

if TYPE_CHECKING:
    from mmulab.widgets.choices import Choices

__all__ = [
    "Kind",
    "Parameter",
    "check",
    "choice",
    "declared",
    "flag",
    "integer",
    "kernel_name",
    "number",
    "numbers",
    "resolve",
    "role_design",
    "text",
]

TAG = "parameters"
INJECTED_HEADER = "# Parameters"
"""First line of the cell that papermill puts after the tagged one."""
_CHOSEN = "_chosen"
"""Name in a notebook of what was chosen from lists there."""

_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as the tagged cell declares it: ``name: type = default  # help``.

    Attributes
    ----------
    name : str
    type : type
        int, float, str or bool.
    default : int, float, str or bool
    help : str
        The comment at the end of the line.
    """

    name: str
    type: type
    default: Any
    help: str

    def accept(self, value: object) -> Any:
        """Return `value` with the parameter's type; a string is read as the command line gives it.

        Raises
        ------
        InputError
        """
        if isinstance(value, str) and self.type is not str:
            value = self._read(value)
        if self.type is float and type(value) is int:
            value = float(value)
        if type(value) is not self.type:
            raise InputError(f"parameter '{self.name}': {quoted(repr(value))} is no {self.type.__name__}")
        return value

    def _read(self, text: str) -> object:
        try:
            if self.type is int:
                return int(text, 0)
            if self.type is float:
                return float(text)
        except ValueError:
            return text
        return {"true": True, "false": False}.get(text.lower(), text)


def declared(path: Path) -> dict[str, Parameter]:
    """Return the parameters that the notebook at `path` declares, by name.

    Raises
    ------
    InputError
        If the file is no notebook, has no single cell tagged ``parameters``, or that cell
        holds anything else than assignments of a literal int, float, str or bool.
    """
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a Jupyter notebook (no JSON with 'cells')") from error
    tagged = [cell for cell in cells if TAG in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{path}: {len(tagged)} cells are tagged '{TAG}', one must be")
    source = "".join(tagged[0]["source"])
    try:
        return {found.name: found for found in map(_read_line(source), ast.parse(source).body)}
    except (SyntaxError, ValueError) as error:
        mend = "write lines 'name: type = value  # help'"
        raise InputError(f"{path}: cell '{TAG}': {error}; {mend}") from error


def _read_line(source: str) -> Callable[[ast.stmt], Parameter]:
    lines = source.splitlines()

    def read(statement: ast.stmt) -> Parameter:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                default = ast.literal_eval(value)
                kind = type(default).__name__
            case ast.AnnAssign(ast.Name(id=name), ast.Name(id=kind), ast.expr() as value):
                default = ast.literal_eval(value)
            case _:
                raise ValueError(f"line {statement.lineno} declares no parameter")
        if kind not in _TYPES:
            raise ValueError(f"line {statement.lineno} has type {kind}, not one of {', '.join(_TYPES)}")
        comment = lines[value.end_lineno - 1 if value.end_lineno else 0][value.end_col_offset or 0 :]
        parameter = Parameter(name, _TYPES[kind], default, comment.strip().lstrip("#").strip())
        return replace(parameter, default=parameter.accept(default))

    return read


def resolve(path: Path, given: Mapping[str, object]) -> dict[str, Any]:
    """Return every parameter of the notebook at `path`: what is `given`, and the defaults of the rest.

    Parameters
    ----------
    path : pathlib.Path
    given : mapping of str to object
        Values of the right type, or strings as the command line has them.

    Raises
    ------
    InputError
        On an unknown name (the message lists the known ones) or a value of the wrong type.
    """
    known = declared(path)
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise InputError(f"{path.name}: unknown parameter '{quoted(name)}'; it has {has}")
    try:
        return {
            name: parameter.accept(given[name]) if name in given else parameter.default
            for name, parameter in known.items()
        }
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Kind:
    """What a parameter may be.

    Attributes
    ----------
    expects : str
        In words.
    accepts : callable
        Tests a value.
    options : tuple of str
        All that it may be, or the plain ones of what it may be; empty if they cannot be listed.
    """

    expects: str
    accepts: Callable[[object], bool]
    options: tuple[str, ...] = ()


def integer(low: int | None = None, high: int | None = None) -> Kind:
    """Return the kind of an int of at least `low` and at most `high`."""
    return Kind(
        "an integer" + _bounds(low, high),
        lambda value: type(value) is int and _within(value, low, high),
    )


def number(low: float | None = None, high: float | None = None) -> Kind:
    """Return the kind of an int or float of at least `low` and at most `high`."""
    return Kind(
        "a number" + _bounds(low, high),
        lambda value: type(value) in (int, float) and _within(value, low, high),  # type: ignore[arg-type]
    )


def choice(options: Iterable[str]) -> Kind:
    """Return the kind of one of `options`, a table's keys for example."""
    known = tuple(options)
    return Kind("one of " + ", ".join(known), lambda value: value in known, known)


def text(*, or_integer: bool = False) -> Kind:
    """Return the kind of any string; papermill makes an int of one that looks so, which may be let pass."""
    if or_integer:
        return Kind("a string or an integer", lambda value: type(value) in (str, int))
    return Kind("a string", lambda value: type(value) is str)


def numbers() -> Kind:
    """Return the kind of a list of numbers, ``100,50``; of a single one papermill makes an int."""
    return Kind("numbers with commas between them", lambda value: type(value) in (int, str))


def kernel_name() -> Kind:
    """Return the kind of a kernel: a release, with behaviours turned on or off, or ``file.py:KERNEL``."""
    from mmulab.kvm.kernels import KERNELS, find_kernel  # most notebooks need none of it

    def known(value: object) -> bool:
        if type(value) is not str:
            return False
        try:
            return ":" in value or bool(find_kernel(value))
        except InputError:
            return False

    expects = f"one of {', '.join(KERNELS)}, with +NAME or -NAME, or file.py:KERNEL"
    return Kind(expects, known, tuple(KERNELS))


def role_design() -> Kind:
    """Return the kind of a role design: a name, an id, or ``module:Class`` or ``file.py:Class``."""
    known = [name for found in DESIGNS.values() for name in (found.name, found.id)]
    return Kind(
        f"one of {', '.join(known)}, or module:Class",
        lambda value: type(value) is str and (value in known or ":" in value),
        tuple(found.name for found in DESIGNS.values()),
    )


def flag() -> Kind:
    """Return the kind of True or False."""
    return Kind("True or False", lambda value: type(value) is bool)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _bounds(low: float | None, high: float | None) -> str:
    ends = (("at least", low), ("at most", high))
    words = [f"{word} {end}" for word, end in ends if end is not None]
    return " of " + " and ".join(words) if words else ""


def check(namespace: MutableMapping[str, Any], **kinds: Kind) -> Choices:
    """Check a notebook's parameters from inside it, in the cell right after them.

    What was chosen from the lists that it returns comes first, as long as the parameters' cell
    says what it said then.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``.
    **kinds : Kind
        What each parameter may be; every parameter must be named.

    Returns
    -------
    mmulab.widgets.choices.Choices
        Shown in JupyterLab, lists to choose from.

    Raises
    ------
    InputError
        If the cell that papermill injected sets a name that is not in `kinds`, or a value is wrong.
    """
    known = ", ".join(kinds)
    for name in _injected(namespace.get("In", [])):
        if name not in kinds:
            raise InputError(f"unknown parameter '{quoted(name)}'; the notebook has {known}")
    chosen = namespace.setdefault(_CHOSEN, {})
    for name, kind in kinds.items():
        if name not in namespace:
            raise InputError(f"parameter '{name}' is not set; run the cell tagged '{TAG}' first")
        if name in chosen and namespace[name] not in chosen[name]:
            del chosen[name]  # the parameters' cell was edited since
        if name in chosen:
            namespace[name] = chosen[name].value
        if not kind.accepts(namespace[name]):
            shown = quoted(repr(namespace[name]))
            raise InputError(f"parameter '{name}' is {shown}; it must be {kind.expects}")
    # The command line reads parameters too, and has no use for a notebook package.
    from mmulab.widgets.choices import Choices  # isort: split

    options = {name: kind.options for name, kind in kinds.items() if kind.options}
    return Choices({name: namespace[name] for name in kinds}, options, chosen)


def _injected(history: list[str]) -> list[str]:
    """Return the names that the cell before the running one assigns, if papermill wrote it.

    `history` is IPython's ``In``: its last entry is the running cell. Only the cell right
    before counts, so names that the notebook defines further down never look like parameters.
    """
    if len(history) < 2 or not history[-2].startswith(INJECTED_HEADER):
        return []
    assigned = [node for node in ast.parse(history[-2]).body if isinstance(node, ast.Assign)]
    return [target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)]
