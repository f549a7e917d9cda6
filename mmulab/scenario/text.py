"""The scenario text format, version 1.

::

    mmulab-scenario 1
    mode 32              # np 32 pae 64 57
    root 10000           # a root table that maps the helper pages; CR3
    alloc 20000          # a cleared page for a table
    m4 10400 20067       # the PDE of 40000000
    m4 20000 100067      # its PTE
    ops
    rd u 40000000
    wr u 40000008 1
    end

The first line is the version, then come header lines in any order, then
``ops``, one op a line (:mod:`mmulab.scenario.grammar`) and ``end``. Only
``mode`` must be there. ``#`` begins a comment. All numbers are hexadecimal
without prefix; addresses of memory are offsets into the backing.

==================================  =============================================================
``mode M``                          paging mode at the beginning
``host VENDOR [KEY=VALUE ..]``      ``amd`` or ``intel``; kernel parameters, widths
``cpu KEY=VALUE ..``                the guest's CPUID
``kernel NAME``                     the host's kernel, 6.1.192 if left out: ``6.12-dummy_root``
``quirk NAME``                      departure of the processor under the host
``sregs CR0 CR3 CR4 EFER``          instead of the mode's own registers
``mem BYTES``                       size of the backing
``thp 0|1``                         the backing is made of 2 MiB pages
``manualdirty 0|1``                 ``KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2``
``nxdisable 0|1``                   ``KVM_CAP_VM_DISABLE_NX_HUGE_PAGES``
``vcpus N``                         vCPUs, at least those that ops name
``dirtyring N``                     entries of each vCPU's dirty ring
``slot0 SIZE``                      size of slot 0, at GPA 0 from the start of the backing
``slot ID GPA SIZE FLAGS OFFSET``   a memslot; ID 10000 and up: of system management mode
``root GPA``, ``alloc GPA``         tables
``fill GPA LEN BYTE``               memory, before any value
``m1``, ``m2``, ``m4``, ``m8``      ``m4 GPA VAL ..``: values of 4 bytes, one behind the other
``pdptfix GPA ..``                  clear A in these PDPTEs before each op
==================================  =============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmulab import files
from mmulab.errors import InputError, named, quoted
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.check import check_values
from mmulab.scenario.grammar import GrammarError, format_step, hex_number
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, Scenario

MAGIC = "mmulab-scenario"
VERSION = 1
SUFFIX = ".mmu"

_U64 = 1 << 64


def read_scenario(path: str | Path) -> Scenario:
    """Read a scenario file.

    Raises
    ------
    InputError
        With file, line and what was expected.
    """
    return parse_scenario(files.read_text(path), named(path))


def write_scenario(scenario: Scenario, path: str | Path) -> None:
    """Write a scenario file, whole or not at all.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    files.write_text(path, format_scenario(scenario))


def parse_scenario(text: str, source: str = "<text>") -> Scenario:
    """Read a scenario from its text.

    Raises
    ------
    InputError
        With source, line and what was expected.
    """
    parser = _Parser(text, source)
    try:
        return parser.parse()
    except GrammarError as error:
        raise InputError(f"{source}: line {parser.at}: {error}") from error


def _lines(text: str) -> list[str]:
    """Split where editors do: ``str.splitlines`` also splits at \\v, \\f and Unicode's separators."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


class _Line(NamedTuple):
    number: int
    words: list[str]


class _Parser:
    """Reads a scenario; `at` is the line that a message should name, `lines_of` those of the header."""

    def __init__(self, text: str, source: str) -> None:
        raw = _lines(text)
        split = ((number, line.partition("#")[0].split()) for number, line in enumerate(raw, 1))
        self.lines = [_Line(number, words) for number, words in split if words]
        self.last = max(1, len(raw))
        self.source = source
        self.at = 1
        self.lines_of: dict[str, int] = {}

    def parse(self) -> Scenario:
        self._version()
        builder = self._header(self._until("ops"))
        for line in self._until("end"):
            self.at = line.number
            builder.op(" ".join(line.words), line=line.number)
        if self.lines:
            self.at = self.lines[0].number
            found = quoted(" ".join(self.lines[0].words), 40)
            raise GrammarError(f"expected nothing after end, found '{found}'")
        return replace(builder.build(), lines=self.lines_of)

    def _version(self) -> None:
        words = self.lines.pop(0).words if self.lines else []
        if words[:1] != [MAGIC]:
            raise GrammarError(f"expected {MAGIC} {VERSION}, found '{quoted(' '.join(words), 40)}'")
        if words[1:] != [str(VERSION)]:
            raise GrammarError(f"version is '{quoted(' '.join(words[1:]), 40)}', expected {VERSION}")

    def _until(self, word: str) -> list[_Line]:
        """Take the lines before the one that is `word` alone."""
        for count, line in enumerate(self.lines):
            if line.words == [word]:
                taken, self.lines = self.lines[:count], self.lines[count + 1 :]
                return taken
        self.at = self.last
        raise GrammarError(f"the text ends here, expected {word}; is the file cut?")

    def _header(self, lines: list[_Line]) -> ScenarioBuilder:
        """Make the builder from the settings, then add what the other lines add."""
        settings: dict[str, Any] = {"source": self.source}
        for line in lines:
            self.at = line.number
            key, args = line.words[0], line.words[1:]
            self.lines_of[" ".join(line.words[:2]).lower() if key == "slot" else key] = line.number
            if key in _SETTINGS:
                for name, value in _SETTINGS[key](args).items():
                    if name in settings:
                        raise GrammarError(f"a second {key} line, expected one")
                    settings[name] = value
            elif key not in _ADDITIONS:
                known = " ".join((*_SETTINGS, *_ADDITIONS))
                raise GrammarError(f"unknown header line '{quoted(key)}', expected one of {known}")
        if "mode" not in settings:
            raise GrammarError("the header has no mode line, expected mode np, 32, pae, 64 or 57")
        builder = ScenarioBuilder(**settings)
        for line in lines:
            self.at = line.number
            key, args = line.words[0], line.words[1:]
            if key in _ADDITIONS:
                _ADDITIONS[key](builder, args)
        return builder


def _numbers(args: list[str], *names: str) -> list[int]:
    """Read exactly one number for each of `names`."""
    if len(args) != len(names):
        raise GrammarError(f"{len(args)} arguments, expected {' '.join(names)}")
    return [hex_number(text, name, _U64) for text, name in zip(args, names, strict=True)]


def _word(args: list[str], name: str) -> str:
    if len(args) != 1:
        raise GrammarError(f"{len(args)} arguments, expected {name}")
    return args[0]


def _switch(args: list[str]) -> bool:
    text = _word(args, "0 or 1")
    if text not in ("0", "1"):
        raise GrammarError(f"'{quoted(text)}', expected 0 or 1")
    return text == "1"


def _pairs(args: list[str]) -> dict[str, int]:
    pairs = {}
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals:
            raise GrammarError(f"'{quoted(arg)}', expected KEY=VALUE")
        pairs[key] = hex_number(value, key, _U64)
    check_values(pairs)
    return pairs


def host_settings(args: list[str]) -> dict[str, Any]:
    """Read the words of a ``host`` line as arguments of a ScenarioBuilder; raises GrammarError."""
    if not args:
        raise GrammarError("no arguments, expected VENDOR [KEY=VALUE ..]")
    return {"vendor": args[0], "host": _pairs(args[1:])}


_SETTINGS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "mode": lambda args: {"mode": _word(args, "np, 32, pae, 64 or 57")},
    "host": host_settings,
    "cpu": lambda args: {"cpu": _pairs(args)},
    "mem": lambda args: {"mem": _numbers(args, "BYTES")[0]},
    "thp": lambda args: {"thp": _switch(args)},
    "vcpus": lambda args: {"vcpus": _numbers(args, "N")[0]},
    "dirtyring": lambda args: {"dirty_ring": _numbers(args, "N")[0]},
    "manualdirty": lambda args: {"manual_dirty": _switch(args)},
    "nxdisable": lambda args: {"disable_nx_huge_pages": _switch(args)},
}


def _values(size: int) -> Callable[[ScenarioBuilder, list[str]], None]:
    def add(builder: ScenarioBuilder, args: list[str]) -> None:
        if len(args) < 2:
            raise GrammarError(f"{len(args)} arguments, expected GPA VAL ..")
        gpa, *values = _numbers(args, "GPA", *["VAL"] * (len(args) - 1))
        for number, value in enumerate(values):
            builder.value(size, gpa + number * size, value)

    return add


def _each(method: Callable[[ScenarioBuilder, int], object]) -> Callable[[ScenarioBuilder, list[str]], None]:
    """One or more addresses, each added by `method`."""

    def add(builder: ScenarioBuilder, args: list[str]) -> None:
        if not args:
            raise GrammarError("no arguments, expected GPA ..")
        for gpa in _numbers(args, *["GPA"] * len(args)):
            method(builder, gpa)

    return add


def _plain(method: Callable[..., object], *names: str) -> Callable[[ScenarioBuilder, list[str]], None]:
    """Exactly the numbers `names`."""

    def add(builder: ScenarioBuilder, args: list[str]) -> None:
        method(builder, *_numbers(args, *names))

    return add


_ADDITIONS: dict[str, Callable[[ScenarioBuilder, list[str]], object]] = {
    "kernel": lambda builder, args: builder.kernel(_word(args, "NAME")),
    "quirk": lambda builder, args: builder.quirk(_word(args, "NAME")),
    "sregs": _plain(ScenarioBuilder.sregs, "CR0", "CR3", "CR4", "EFER"),
    "slot0": lambda builder, args: builder.slot(0, 0, _numbers(args, "SIZE")[0]),
    "slot": _plain(ScenarioBuilder.slot, "ID", "GPA", "SIZE", "FLAGS", "OFFSET"),
    "root": _each(ScenarioBuilder.root),
    "alloc": _each(ScenarioBuilder.alloc),
    "fill": _plain(ScenarioBuilder.fill, "GPA", "LEN", "BYTE"),
    "m1": _values(1),
    "m2": _values(2),
    "m4": _values(4),
    "m8": _values(8),
    "pdptfix": _each(ScenarioBuilder.pdptfix),
}


def format_scenario(scenario: Scenario) -> str:
    """Write a scenario as text; what has its default is left out.

    Raises
    ------
    GrammarError
        An op that the language lacks.
    """
    return "\n".join([f"{MAGIC} {VERSION}", *_header_lines(scenario), "ops", *_op_lines(scenario), "end", ""])


def _header_lines(scenario: Scenario) -> Iterator[str]:
    header = scenario.header
    yield " ".join(["host", header.vendor, *_changes(header.host, HOST_DEFAULTS)])
    cpu = _changes(header.cpuid, CPUID_DEFAULTS)
    if cpu:
        yield " ".join(["cpu", *cpu])
    yield f"mode {header.mode}"
    yield "sregs " + " ".join(f"{value:x}" for value in header.regs)
    yield f"mem {header.backing_bytes:x}"
    if header.thp:
        yield "thp 1"
    if header.manual_dirty:
        yield "manualdirty 1"
    if header.disable_nx_huge_pages:
        yield "nxdisable 1"
    if header.vcpus > 1:
        yield f"vcpus {header.vcpus:x}"
    if header.dirty_ring:
        yield f"dirtyring {header.dirty_ring:x}"
    if header.kernel != LINUX_6_1.name:
        yield f"kernel {header.kernel}"
    for quirk in header.quirks:
        yield f"quirk {quirk}"
    for slot in header.slots:
        yield "slot " + " ".join(f"{value:x}" for value in slot)
    for fill in header.fills:
        yield "fill " + " ".join(f"{value:x}" for value in fill)
    for size, gpa, value in header.values:
        yield f"m{size} {gpa:x} {value:x}"
    for gpa in header.pdptfix:
        yield f"pdptfix {gpa:x}"


def _changes(values: dict[str, int], defaults: dict[str, int]) -> list[str]:
    return [f"{key}={values[key]:x}" for key, default in defaults.items() if values[key] != default]


def _op_lines(scenario: Scenario) -> Iterator[str]:
    for step in scenario.steps:
        yield format_step(step)
