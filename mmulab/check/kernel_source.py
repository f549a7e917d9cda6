"""The assertions in a kernel's sources: how many of each macro stand in which function.

The sources are read as text, in the kernel's own style: a function's body opens and
closes a brace, comments and strings are passed over, and of a template
(``FNAME(fetch)``) the bare name counts. What a ``#define`` holds is no assertion yet.

Source: Linux 6.1 ``include/asm-generic/bug.h``, ``include/linux/build_bug.h``,
``include/linux/lockdep.h``, ``include/linux/kvm_host.h`` (``KVM_BUG_ON``),
``arch/x86/kvm/mmu/mmu_internal.h`` (``MMU_WARN_ON``); 6.12 ``KVM_MMU_WARN_ON``,
``KVM_BUG_ON_DATA_CORRUPTION``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmulab.errors import InputError

__all__ = ["Place", "count_assertions", "places"]

KVM = Path("arch/x86/kvm")

_SKIPPED = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_FUNCTION = re.compile(r"(?:\bFNAME\((\w+)\)|\b(\w+))\s*\(")
_MACRO = re.compile(
    r"\b((?:KVM_MMU_|KVM_|MMU_|VM_|BUILD_)?(?:WARN|BUG)(?:_ON)?(?:_ONCE|_MSG|_DATA_CORRUPTION)?"
    r"|lockdep_assert_\w+)\s*\("
)


class Place(NamedTuple):
    """Where assertions of one kind stand.

    Attributes
    ----------
    file : str
        Below ``arch/x86/kvm``.
    function : str
    macro : str
    """

    file: str
    function: str
    macro: str


def places(source: Path, files: Iterable[str]) -> Counter[Place]:
    """Count the assertions of some files of a kernel's sources.

    Parameters
    ----------
    source : Path
        The sources' root.
    files : iterable of str
        Below ``arch/x86/kvm``; one that this kernel does not have counts nothing.

    Raises
    ------
    InputError
        There are no KVM sources, or a file cannot be read.
    """
    if not (source / KVM).is_dir():
        raise InputError(f"{source}: no kernel sources: there is no {KVM} in it")
    found: Counter[Place] = Counter()
    for file in files:
        path = source / KVM / file
        if path.exists():
            found.update(count_assertions(file, _read(path)))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def count_assertions(file: str, text: str) -> Counter[Place]:
    """Count the assertions in the text of one file."""
    found: Counter[Place] = Counter()
    for function, body in _bodies(_SKIPPED.sub(" ", _DIRECTIVE.sub("", _SKIPPED.sub(_blank, text)))):
        found.update(Place(file, function, macro) for macro in _MACRO.findall(body))
    return found


def _blank(match: re.Match[str]) -> str:
    """Keep a comment's lines apart, so that a directive ends where it did."""
    return " " if match[0].startswith(("/*", "//")) else match[0]


def _bodies(text: str) -> Iterator[tuple[str, str]]:
    """Yield each function's name and body; other braces at the outermost level have no name."""
    depth = opened = closed = 0
    for brace in re.finditer(r"[{}]", text):
        if brace[0] == "{":
            if not depth:
                opened = brace.start()
            depth += 1
            continue
        depth -= 1
        if depth:
            continue
        head = text[closed:opened].rpartition(";")[2]
        named = _FUNCTION.search(head)
        if named is not None:
            yield named[1] or named[2], text[opened : brace.end()]
        closed = brace.end()
