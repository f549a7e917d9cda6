"""One layout of an event's line: a template that reads and writes.

A template is the kernel's ``TP_printk`` in Python's notation: ``gfn {gfn:x} level {level:d}``. Read
backwards it is a regular expression; blanks match any number of blanks, because mailers and trace-cmd
change them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from string import Formatter
from typing import Any

from mmulab.ftrace.forms import Column, Form, form

KERNEL = "the kernel"
PLUGIN = "libtraceevent's plugin"
PROBE = "a probe"
RAW = "a tool, field by field"
UNPARSED = "[FAILED TO PARSE]"
"""What libtraceevent prints before the fields of an event whose format it cannot run."""


class Layout:
    """A template of one event and who prints it.

    Parameters
    ----------
    template : str
    since, before : str
        The kernels that print so, the first and the first that does not; "" where that is open.
    by : str
        :data:`KERNEL`, :data:`PLUGIN`, :data:`PROBE` or :data:`RAW`.
    """

    def __init__(self, template: str, since: str = "", before: str = "", by: str = KERNEL) -> None:
        self.template = template
        self.since, self.before, self.by = since, before, by
        self._parts: list[tuple[str, str, Form | None]] = []
        forms: dict[str, Form] = {}
        for literal, name, spec, _ in Formatter().parse(template):
            found = None if name is None else form(spec or "word")
            self._parts.append((literal, name or "", found))
            if name is not None and found is not None:
                forms.setdefault(name, found)
        self.forms: Mapping[str, Form] = forms

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields, in the line's order."""
        return tuple(self.forms)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches a whole line of a text, one group a field."""
        seen: set[str] = set()
        text = ""
        for literal, name, found in self._parts:
            empty = found is not None and re.fullmatch(found.pattern, "") is not None
            text += _blanks(literal, optional=empty)
            if found is not None:
                text += _unnamed(found.pattern) if name in seen else found.pattern
                seen.add(name)
        return re.compile(f"^ *{text} *$", re.MULTILINE | re.ASCII)

    def read(self, texts: Sequence[str]) -> tuple[Column, ...] | None:
        """Return a column for each field if all of the texts are of this layout, else None."""
        found = self.pattern.findall("\n".join(texts))
        if len(found) != len(texts):
            return None
        return self.columns(found)

    def columns(self, rows: Sequence[Any]) -> tuple[Column, ...]:
        """Return a column for each field of what the pattern found."""
        forms = list(self.forms.values())
        if not forms:
            return ()
        by_field = [rows] if len(forms) == 1 else list(zip(*rows, strict=True))
        return tuple(one.column(texts) for one, texts in zip(forms, by_field, strict=True))

    def match(self, text: str) -> Any:
        """Return what :meth:`columns` takes of one text; None if it is of another layout."""
        found = self.pattern.fullmatch(text)
        if found is None:
            return None
        return found[1] if len(self.forms) == 1 else found.groups()

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether an event's fields can be written so."""
        return all(
            name in fields
            and (bool(one.dtype) or re.fullmatch(one.pattern, str(fields[name]), re.ASCII) is not None)
            for name, one in self.forms.items()
        )

    def write(self, fields: Mapping[str, Any]) -> str:
        """Return the line of an event's fields."""
        return "".join(
            literal + ("" if found is None else found.write(fields[name]))
            for literal, name, found in self._parts
        )

    def __repr__(self) -> str:
        return f"Layout({self.template!r})"


def _blanks(literal: str, *, optional: bool) -> str:
    """Return a literal's pattern; if what follows may be empty, its last blank may be lost."""
    parts = [re.escape(part) for part in re.split(" +", literal)]
    if optional and len(parts) > 1 and not parts[-1]:
        return " +".join(parts[:-1]) + " *"
    return " +".join(parts)


def _unnamed(pattern: str) -> str:
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern)
