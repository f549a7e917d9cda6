"""A user's own role design: a class in a file or a module of the user's.

This is where code that is not the laboratory's comes in, and it may do anything.
So a design is looked at once, when it is found; then each of its methods runs
behind a border, which lets nothing out but words, facts and one kind of error.
Only a user's designs pay for that.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import importlib
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from mmulab import deadline, limits
from mmulab.errors import DesignError, InputError, quoted
from mmulab.files import read_bytes
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.design_check import ATTRIBUTES, attribute_problem, is_built_in
from mmulab.kvm.roles.word import CpuRole, RoleFacts

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST = 200
"""Characters of a cause that are shown."""
_HIGHEST = {"level": 15, "quadrant": 3, "access": 7}
"""What facts may say at most, where they are no flags; 255 for ``smm``."""


class Border:
    """Around all code of one user's design.

    Parameters
    ----------
    reference : str
        How the design was asked for.
    what : str
        What it is, in messages.
    """

    def __init__(self, reference: str, what: str = "role design") -> None:
        self.reference, self.what = reference, what
        self.file = ""  # where its text is; lines of that are named
        self.called = reference.rpartition(":")[2]

    def error(self, method: str, how: str) -> DesignError:
        """Return the error of a method, ``.pack``, that did what it must not; without one, of the class."""
        where = f"{self.called}{method}: " if method else ""
        return DesignError(f"{self.what} {self.reference!r}: {where}{how}")

    def run(self, method: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the user's; whatever it raises is the design's error, but for a Ctrl-C."""
        try:
            return deadline.call(limits.FOREIGN_SECONDS, call, *args, **kwargs)
        except DesignError:
            raise
        except deadline.TooLong as error:
            raise self.error(method, f"runs longer than {limits.FOREIGN_SECONDS} s, the limit") from error
        except BaseException as error:  # the border of foreign code
            if isinstance(error, KeyboardInterrupt) and not _raised_by_a_statement(error):
                raise
            loading = "" if method else "cannot be loaded: "
            raise self.error(method, loading + self._cause(error)) from error

    def _cause(self, error: BaseException) -> str:
        kind = type(error).__name__
        try:
            text = str(error)
        except Exception:  # the border of foreign code: an exception class of the user's
            text = ""
        text = quoted(" ".join(text.split()), _LONGEST)
        lines = [at for frame, at in traceback.walk_tb(error.__traceback__) if self._holds(frame.f_code)]
        where = f" (line {lines[-1]})" if lines else ""
        return f"{kind}: {text}".removesuffix(": ") + where

    def _holds(self, code: Any) -> bool:
        return bool(self.file) and code.co_filename == self.file

    def word(self, design: RoleDesign, method: str, found: object) -> int:
        """Return a role word that a method gave, if it is one."""
        if isinstance(found, bool) or not hasattr(found, "__index__"):
            raise self.error(method, f"gave {_shown(found)}; a role word is an int")
        word = operator.index(found)
        if word >> design.layout.width:
            raise self.error(method, f"gave {_shown(word)}; its layout has {design.layout.width} bits")
        return word

    def facts(self, found: object) -> RoleFacts:
        """Return the facts that a method gave, if they are such."""
        if not isinstance(found, RoleFacts):
            raise self.error(".facts", f"gave {_shown(found)}; RoleFacts are wanted")
        for name, value in zip(RoleFacts._fields, found, strict=True):
            if not (isinstance(value, int) and 0 <= value <= _HIGHEST.get(name, 255)):
                raise self.error(".facts", f"gave {name}={_shown(value)}")
        return found

    def fields(self, found: object) -> dict[str, int]:
        """Return the values of fields that a method gave, if they are such."""
        if not isinstance(found, dict):
            raise self.error(".own_fields", f"gave {_shown(found)}; a dict of fields' values is wanted")
        for name, value in found.items():
            if not (isinstance(name, str) and isinstance(value, int)):
                raise self.error(".own_fields", f"gave {_shown(name)}: {_shown(value)}; values are ints")
        return found


def _raised_by_a_statement(error: BaseException) -> bool:
    """Whether ``raise`` stands where the error came from; a signal arrives at any other instruction."""
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return found is not None and found.tb_frame.f_code.co_code[found.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _shown(found: object) -> str:
    """Return a value in a few characters; of what is no plain value, only its type."""
    if found is None or isinstance(found, bool | float):
        return repr(found)
    if isinstance(found, int):
        return f"{operator.index(found):#x}"[:40]
    return f"a {type(found).__name__}" if not isinstance(found, str) else repr(str(found))[:40]


_LOADED: dict[tuple[str, str], RoleDesign] = {}
"""What was loaded, by reference and digest; processes that fork find it here."""


def load_design(reference: str) -> RoleDesign:
    """Return the design that ``file.py:Class`` or ``module:Class`` names, checked.

    Raises
    ------
    DesignError
        There is none, or it is no design that could run.
    """
    where, _, wanted = reference.rpartition(":")
    border = Border(reference)
    # What a user's file prints when it is read must not come between the lines of an answer.
    with contextlib.redirect_stdout(sys.stderr):
        module, digest = module_of(border, where)
        found = subclass_in(border, module, where, wanted, RoleDesign)
        design = border.run("", lambda: _behind(border, found, digest))
        _probe(border, design)
    _LOADED[reference, digest] = design
    return design


def load_value(reference: str, kind: type[T], what: str) -> T:
    """Return the value of a kind, a kernel say, that ``file.py:NAME`` or ``module:NAME`` names.

    Raises
    ------
    DesignError
        There is none, or it is of another kind.
    """
    where, _, wanted = reference.rpartition(":")
    border = Border(reference, what)
    with contextlib.redirect_stdout(sys.stderr):
        module, _digest = module_of(border, where)
        found = border.run("", lambda: getattr(module, wanted, None))
    if not isinstance(found, kind):
        why = f"{where} has no {wanted}" if found is None else f"{wanted} is no {kind.__name__}"
        raise border.error("", why)
    return found


def subclass_in(border: Border, module: ModuleType, where: str, wanted: str, base: type[T]) -> type[T]:
    """Return the class of a user's module that extends `base`; `where` is how the module was named."""
    found = border.run("", lambda: getattr(module, wanted, None))
    if not (isinstance(found, type) and issubclass(found, base)):
        name = f"{base.__module__}.{base.__name__}"
        why = f"{where} has no {wanted}" if found is None else f"{wanted} is no subclass of {name}"
        raise border.error("", why)
    return found


def module_of(border: Border, where: str) -> tuple[ModuleType, str]:
    """Return the module that a design is in, and the digest of its file."""
    if where.endswith(".py"):
        border.file = where
        return _from_file(border, where)
    module: ModuleType = border.run("", lambda: importlib.import_module(where))
    border.file = getattr(module, "__file__", None) or ""
    try:
        return module, hashlib.sha256(Path(border.file).read_bytes()).hexdigest() if border.file else ""
    except OSError:  # a module of an archive
        return module, ""


def _from_file(border: Border, path: str) -> tuple[ModuleType, str]:
    """Execute a file as a module of its own."""
    try:
        source = read_bytes(path, limits.TEXT_BYTES)
    except InputError as error:
        raise InputError(f"{border.what} {border.reference!r}: {error}") from error
    digest = hashlib.sha256(source).hexdigest()
    module = ModuleType(f"mmulab_design_{digest[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses and type hints look it up
    code = border.run("", lambda: compile(source, path, "exec"))
    border.run("", lambda: exec(code, vars(module)))
    return module, digest


def _behind(border: Border, found: type[RoleDesign], digest: str) -> RoleDesign:
    """Return a design of the user's class, with its attributes checked and its methods guarded."""
    guarded = _guarded(border, found, digest)
    for name in ATTRIBUTES:
        said = getattr(guarded, name)
        if not hasattr(type(said), "__get__"):  # what is computed shows on an instance only
            _check(border, name, said)
    design = border.run("()", guarded)
    for name in ATTRIBUTES:
        value = getattr(design, name)
        _check(border, name, value)
        setattr(guarded, name, value)
    if not isinstance(getattr(design, "sync_mask", None), int):
        raise border.error(".__init__", "it must call super().__init__()")
    return design


def _check(border: Border, name: str, value: object) -> None:
    why = attribute_problem(name, value)
    if why is not None:
        raise border.error("", why)


def _guarded(border: Border, found: type[RoleDesign], digest: str) -> type[RoleDesign]:
    """Return a subclass of the user's class that checks what each method gives and what it raises."""

    class Guarded(found):  # type: ignore[valid-type, misc]
        """A user's design behind its border."""

        def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
            return border.word(self, ".pack", border.run(".pack", super().pack, facts, cpu))

        def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
            return border.fields(border.run(".own_fields", super().own_fields, facts, cpu))

        def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
            of = {"direct": direct, "access": access, "quadrant": quadrant}
            return border.word(self, ".child", border.run(".child", super().child, parent, **of))

        def facts(self, role: int) -> RoleFacts:
            return border.facts(border.run(".facts", super().facts, role))

        def invalidated(self, role: int) -> int:
            return border.word(self, ".invalidated", border.run(".invalidated", super().invalidated, role))

        def __copy__(self) -> RoleDesign:
            other: RoleDesign = object.__new__(type(self))
            vars(other).update(vars(self))
            return other

        def __reduce__(self) -> tuple[Any, ...]:
            return _again, (border.reference, digest)

        __repr__ = RoleDesign.__repr__

    Guarded.__name__, Guarded.__module__ = found.__name__, found.__module__
    Guarded.reference, Guarded.digest = border.reference, digest
    owner = next(cls for cls in found.__mro__ if "id" in vars(cls))
    if is_built_in(owner):
        Guarded.id = ""  # inherited, it would name another design
    return Guarded


def _again(reference: str, digest: str) -> RoleDesign:
    """Return the design in another process, which has its own copy or reads the file once more."""
    design = _LOADED.get((reference, digest)) or load_design(reference)
    if design.digest != digest:
        raise InputError(f"role design {reference!r}: its file has changed since it was loaded")
    return design


def _contexts() -> Iterator[tuple[RoleFacts, CpuRole]]:
    """Yield what every design meets: a direct root, and a root of each paging mode."""
    for level in (0, 2, 3, 4, 5):
        cpu = CpuRole(
            level=level,
            has_4_byte_gpte=level == 2,
            direct=level == 0,
            cr0_wp=level > 0,
            efer_nx=level > 2,
            valid=1,
            cr4_la57=level == 5,
            efer_lma=level > 3,
        )
        facts = {name: getattr(cpu, name) for name in RoleFacts._fields if name in CpuRole._fields}
        flags = {name: bool(value) for name, value in facts.items() if name not in ("access", "smm")}
        yield (
            RoleFacts(**facts | flags | {"level": level or 4}, quadrant=0, invalid=False, passthrough=False),
            cpu,
        )


def _probe(border: Border, design: RoleDesign) -> None:
    """Refuse a design that fails whatever it is asked; where it fails here and there, a run shows it."""
    failures = []
    for count, (facts, cpu) in enumerate(_contexts(), 1):
        try:
            _round_trip(border, design, facts, cpu)
        except DesignError as error:
            failures.append(error)
        if len(failures) < count:
            return
    raise failures[0]


def _round_trip(border: Border, design: RoleDesign, facts: RoleFacts, cpu: CpuRole) -> None:
    word = design.pack(facts, cpu)
    if design.pack(facts, cpu) != word:
        raise border.error(".pack", "gave two words of the same facts")
    level = design.facts(word).level
    if level != facts.level:
        raise border.error(".facts", f"says level {level} of the word that pack gave for level {facts.level}")
    design.facts(design.invalidated(word))
    design.facts(design.child(word, direct=facts.direct, access=facts.access, quadrant=0))
