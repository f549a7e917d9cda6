"""Which kernel printed a trace, as far as its words tell, and its roles as words of that kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mmulab.ftrace.layout import KERNEL
from mmulab.ftrace.trace import Trace
from mmulab.kvm.roles.history import HISTORY, RoleVersion
from mmulab.kvm.roles.trace_text import KERNEL as BY_KERNEL
from mmulab.kvm.roles.trace_text import TracedRole, read_trace


class Guess(NamedTuple):
    """The kernels that print so.

    Attributes
    ----------
    since, before : str
        The first release, and the first that does not; "" where that is open.
    told_by : tuple of str
        The events whose lines tell it.
    roles : tuple of RoleVersion
        The role layouts that fit all roles in the trace and these releases, the oldest first; empty if no
        role is printed by the kernel itself.
    """

    since: str
    before: str
    told_by: tuple[str, ...]
    roles: tuple[RoleVersion, ...]

    def __str__(self) -> str:
        if not self.told_by:
            return "not told by the lines"
        if self.before and self.since and _key(self.since) >= _key(self.before):
            return f"lines of {self.since} or later beside lines of before {self.before}"
        parts = [f"{self.since} or later"] if self.since else []
        parts += [f"before {self.before}"] if self.before else []
        return ", ".join(parts)


def _key(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def guess_kernel(trace: Trace) -> Guess:
    """Say which kernels print the lines of a trace so."""
    since: dict[str, str] = {}
    before: dict[str, str] = {}
    for name, table in trace.tables.items():
        for number, layout in enumerate(table.layouts):
            if layout.by == KERNEL and (table.layout == number).any():
                since |= {name: layout.since} if layout.since else {}
                before |= {name: layout.before} if layout.before else {}
    first = max(since.values(), key=_key, default="")
    last = min(before.values(), key=_key, default="")
    told_by = sorted({name for name, release in since.items() if release == first})
    told_by += sorted({name for name, release in before.items() if release == last} - set(told_by))
    return Guess(first, last, tuple(told_by), _role_versions(role_texts(trace), first, last))


def role_texts(trace: Trace) -> list[str]:
    """Return the different roles of a trace, as its lines print them."""
    columns = [table["role"] for table in trace.tables.values() if "role" in table.columns]
    return sorted({text for column in columns for text in column.tolist() if isinstance(text, str) and text})


def _role_versions(texts: Iterable[str], first: str, last: str) -> tuple[RoleVersion, ...]:
    texts = list(texts)
    fitting = [version for version in HISTORY if texts and all(_by_kernel(text, version) for text in texts)]
    ends = [*(version.since for version in HISTORY[1:]), ""]
    until = dict(zip((version.since for version in HISTORY), ends, strict=True))
    return tuple(
        version
        for version in fitting
        if (not last or _key(version.since) < _key(last))
        and (not first or not until[version.since] or _key(until[version.since]) > _key(first))
    )


def _by_kernel(text: str, version: RoleVersion) -> bool:
    found = read_trace(text, version.layout, version.wording)
    return found is not None and found.by == BY_KERNEL


def read_role(text: str | int, version: RoleVersion) -> TracedRole | None:
    """Return a role's word as far as a trace tells it; None if `version` does not print so."""
    if isinstance(text, int):
        return TracedRole(text, (), "a tool, as a number")
    return read_trace(text, version.layout, version.wording)
