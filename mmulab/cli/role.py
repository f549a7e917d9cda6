"""``mmulab role``: role words of any kernel since 2.6.28, and of any role design."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click

from mmulab.cli.group import Group
from mmulab.cli.number import LONGEST, read_hex, read_number, short
from mmulab.cli.role_input import Reading, read_roles
from mmulab.errors import InputError
from mmulab.kvm.roles.decoders import DECODERS, PLUGIN_KVM, Misreading, misreadings, reads_rightly
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.history import (
    BACKPORTS,
    HISTORY,
    MAINLINE,
    SOURCES_READ,
    Backport,
    RoleVersion,
    find_role_version,
    version_of,
)
from mmulab.kvm.roles.trace_text import KERNEL, TracedRole
from mmulab.kvm.roles.word import RoleLayout

BASELINE = "6.1"
"""The kernel of the model, and of a word of which nothing else is said."""

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Reader(NamedTuple):
    """Who reads a word: a kernel, or a role design; `version` is the kernel's word, None if it is none's."""

    title: str
    layout: RoleLayout
    trace: Callable[[int], str | None]
    version: RoleVersion | None

    def read(self, text: str) -> int:
        """Return the word that `text` says, if it fits the layout."""
        word = read_hex(text)
        if word is None:
            raise InputError(f"role word {short(text)}: give a hexadecimal number as 20712")
        if not 0 <= word < 1 << self.layout.width:
            raise InputError(
                f"role word {short(text)}: {self.title} has {self.layout.width} bits in its word"
            )
        return word

    def told(self, words: tuple[str, ...]) -> list[TracedRole]:
        """Return the roles that numbers, a line of a trace, or the lines of standard input tell."""
        wording = None if self.version is None else self.version.wording
        return read_roles(words, Reading(self.title, self.layout, wording, self.read))

    def hides(self, word: int, other: int, field: str) -> bool:
        """Whether the trace prints the same for a word and for that with another's value in one field."""
        changed = self.layout.set(word, field, self.layout.get(other, field))
        said = self.trace(word)
        return said is not None and said == self.trace(changed)


def _kernel(name: str) -> Reader:
    version = find_role_version(name)
    return Reader(f"Linux {name}", version.layout, version.trace_str, version)


def _design(name: str) -> Reader:
    design = find_design(name)
    version = version_of(design.layout)
    trace = version.trace_str if version else lambda word: design.facts(word).trace_str()
    return Reader(f"design {design.name}", design.layout, trace, version)


def _reader(kernel: str | None, design: str | None) -> Reader:
    if design is None:
        return _kernel(BASELINE if kernel is None else kernel)
    if kernel is not None:
        raise InputError("--kernel and --design: each says how the word is read; give one of them")
    return _design(design)


def _reads(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say who reads the words."""
    kernel: Decorator = click.option(
        "--kernel",
        metavar="VERSION",
        help=f"6.1, v6.1.192, 5.17-rc1, 6.1.0-31-amd64, 2.6.35 or {MAINLINE}.  [default: {BASELINE}]",
    )
    design: Decorator = click.option(
        "--design", metavar="NAME", help="A role design instead, by name, id or module:Class; see 'designs'."
    )
    return kernel(design(command))


_JSON: Decorator = click.option("--json", "as_json", is_flag=True, help="JSON instead of lines.")


@click.group(cls=Group)
def role() -> None:
    """Read and write role words (union kvm_mmu_page_role) as a kernel or a role design does."""


@role.command()
@click.argument("words", metavar="WORD...", nargs=-1, required=True)
@_reads
@_JSON
def decode(words: tuple[str, ...], kernel: str | None, design: str | None, as_json: bool) -> None:
    """Show every field of WORDs, and what the trace prints.

    A WORD is hexadecimal, with 0x or without. Instead, give a line of a trace that has a role, as
    'sp gen 0 gfn 100 l1 4-byte q0 direct wux nxe ad root 0 sync', from the kernel, from trace-cmd or
    perf, or from 'mmulab run --events'; fields that such a line does not tell are shown as '?', and are 0
    in the word. With '-' alone, standard input is read: one line of a trace, or words, on each line.

    A note says what trace-cmd and perf print instead, if their plugin takes the bits for something else.
    """
    reader = _reader(kernel, design)
    found = [_told_record(reader, told) for told in reader.told(words)]
    for line in [json.dumps(found, indent=1)] if as_json else _decoded(reader, found):
        click.echo(line)


@role.command()
@click.argument("fields", metavar="FIELD=VALUE...", nargs=-1, required=True)
@_reads
def encode(fields: tuple[str, ...], kernel: str | None, design: str | None) -> None:
    """Print the word of the fields given; all others are 0."""
    reader = _reader(kernel, design)
    values: dict[str, int] = {}
    for field in fields:
        name, _, text = field.partition("=")
        if name in values:
            raise InputError(f"role field {short(field)}: {name[:LONGEST]} is given twice")
        value = read_number(text)
        if value is None:
            raise InputError(f"role field {short(field)}: give a name and a number as level=2")
        values[name] = value
    try:
        word = reader.layout.pack(**values)
    except ValueError as error:
        raise InputError(f"{reader.title}: {error}") from error
    click.echo(hex(word))


@role.command()
@click.argument("words", metavar="A [B]", nargs=-1, required=True)
@_reads
@click.option("--to", metavar="VERSION", help="Read A (and B) as this kernel too, beside --kernel.")
@_JSON
def diff(
    words: tuple[str, ...], kernel: str | None, design: str | None, to: str | None, as_json: bool
) -> None:
    """Show where two words differ, or two kernels.

    That is the fields of A and B with other values, and which of them the trace hides; or, with --to, how
    two kernels read the same word. A and B are hexadecimal, with 0x or without, or each a line of a trace
    in quotes, as 'role decode' takes it; with '-' alone, standard input has both, one on each line. What
    such a line does not tell may differ, and is named.
    """
    reader = _reader(kernel, design)
    if to is not None:
        other = _kernel(to)
        pairs = [(_record(reader, reader.read(t)), _record(other, other.read(t))) for t in words]
        answer: Any = [{"from": one, "to": two} for one, two in pairs]
        lines: Iterator[str] = (line for one, two in pairs for line in _two_kernels(reader, one, other, two))
    else:
        found = [role for word in words for role in reader.told((word,))]
        if len(found) < 2:
            raise InputError("role diff: give a second word, or a second kernel with --to")
        if len(found) > 2:
            raise InputError(f"role diff: {len(found)} words, expected two")
        answer = _differences(reader, *found)
        lines = _two_words(reader, answer)
    for line in [json.dumps(answer, indent=1)] if as_json else lines:
        click.echo(line)


@role.command()
@_JSON
def layouts(as_json: bool) -> None:
    """List the layouts since 2.6.28.

    Each with the commits that changed it; then stable releases that differ, and the tools' own unions.
    """
    known = {
        "versions": [_version(version) for version in HISTORY],
        "backports": [_version(found.version) | {"not_in": _lacks(found)} for found in BACKPORTS.values()],
        "decoders": [
            {
                "name": tool.name,
                "source": tool.source,
                "fields": _fields(tool.layout),
                "reads_rightly": [
                    v.since for v in _all_versions() if v.wording and reads_rightly(tool, v.layout)
                ],
            }
            for tool in DECODERS
        ],
        "sources_read": SOURCES_READ.split(),
    }
    for line in [json.dumps(known, indent=1)] if as_json else _listed(known):
        click.echo(line)


def _record(reader: Reader, word: int) -> dict[str, Any]:
    layout, version = reader.layout, reader.version
    gaps = word & ~sum(layout.mask.values())
    record: dict[str, Any] = {
        "word": hex(word),
        "read_as": reader.title,
        "fields": [field | {"value": layout.get(word, field["name"])} for field in _fields(layout)],
        "unused_bits_set": hex(gaps),
        "trace": reader.trace(word),
    }
    if version is not None:
        record |= {"layout_since": version.since, "settled": version.settled, "note": version.note}
    if version is not None and version.wording is not None:
        record["plugin"] = {
            "tool": PLUGIN_KVM.name,
            "prints": PLUGIN_KVM.said(word),
            "wrong": [misread._asdict() for misread in misreadings(PLUGIN_KVM, layout, word)],
        }
    return record


def _told_record(reader: Reader, told: TracedRole) -> dict[str, Any]:
    """Return a word's record; of one that a trace's line tells, also who printed it and what is not in it."""
    record = _record(reader, told.word)
    if not told.by:
        return record
    for field in record["fields"]:
        if field["name"] in told.hidden:
            field["value"] = None
    if told.hidden and told.by == KERNEL:  # what a tool prints of the word depends on what is not told
        record.pop("plugin", None)
    may_be_set = sum(reader.layout.mask[name] for name in told.hidden)
    return record | {"printed_by": told.by, "not_told": list(told.hidden), "may_be_set": hex(may_be_set)}


def _fields(layout: RoleLayout) -> list[dict[str, Any]]:
    return [
        {"name": name, "bits": bits, "lowest_bit": layout.shift[name], "width": layout.width_of(name)}
        for name, bits in reversed(layout.spans())
        if name
    ]


def _decoded(reader: Reader, records: list[dict[str, Any]]) -> Iterator[str]:
    yield from _about(reader)
    for record in records:
        yield f"{record['word']}: {record['trace'] or 'this kernel has no tracepoint that prints it'}"
        for field in record["fields"]:
            value = "?" if field["value"] is None else field["value"]
            yield f"  {field['bits']:>6}  {field['name']:16} {value}"
        if record.get("not_told"):
            yield (
                f"  note: {record['printed_by']} does not print {', '.join(record['not_told'])}: the word is "
                f"{record['word']}, or that with some of the bits {record['may_be_set']} set"
            )
        if record["unused_bits_set"] != "0x0":
            yield f"  note: bits {record['unused_bits_set']} are set and belong to no field"
        yield from _plugin_note(record)


def _about(reader: Reader) -> Iterator[str]:
    version = reader.version
    if version is None:
        yield reader.title
        return
    yield f"{reader.title}: layout of {version.since} ({', '.join(c.hash for c in version.commits)})"
    if not version.settled:
        yield f"  NOT SETTLED: {version.note}"
    elif version.note:
        yield f"  note: {version.note}"


def _plugin_note(record: dict[str, Any]) -> Iterator[str]:
    plugin = record.get("plugin")
    if plugin and plugin["wrong"]:
        wrong = ", ".join(_misread(Misreading(**misread)) for misread in plugin["wrong"])
        yield f"  note: {plugin['tool']} prints '{plugin['prints']}'; wrong: {wrong}"


def _misread(misread: Misreading) -> str:
    true = "no such field" if misread.true is None else misread.true
    return f"{misread.field} {misread.said} (is {true})"


def _differences(reader: Reader, first: TracedRole, second: TracedRole) -> dict[str, Any]:
    a, b = first.word, second.word
    one, two = reader.layout.unpack(a), reader.layout.unpack(b)
    not_told = {*first.hidden, *second.hidden}
    differ = [
        {
            "name": field["name"],
            "bits": field["bits"],
            "a": one[field["name"]],
            "b": two[field["name"]],
            "hidden": reader.hides(a, b, field["name"]),
        }
        for field in _fields(reader.layout)
        if one[field["name"]] != two[field["name"]] and field["name"] not in not_told
    ]
    unknown = [field["name"] for field in _fields(reader.layout) if field["name"] in not_told]
    return {
        "a": hex(a),
        "b": hex(b),
        "read_as": reader.title,
        "differ": differ,
        "not_told": unknown,
        "xor": hex(a ^ b),
    }


def _two_words(reader: Reader, answer: dict[str, Any]) -> Iterator[str]:
    yield from _about(reader)
    for name in ("a", "b"):
        yield f"{answer[name]}: {reader.trace(int(answer[name], 16)) or ''}".rstrip(": ")
    if not answer["differ"]:
        yield "  no field differs"
    for field in answer["differ"]:
        hidden = "  (the trace hides it)" if field["hidden"] else ""
        yield f"  {field['bits']:>6}  {field['name']:16} {field['a']} {field['b']}{hidden}"
    if answer["not_told"]:
        yield f"  note: not told, so these may differ: {', '.join(answer['not_told'])}"
    if answer["differ"] and all(field["hidden"] for field in answer["differ"]):
        yield "  note: a trace prints the same for both"


def _two_kernels(one: Reader, a: dict[str, Any], two: Reader, b: dict[str, Any]) -> Iterator[str]:
    """Lay two readings of a word side by side; a star marks a field with another place or value."""
    yield from (*_about(one), *_about(two))
    yield a["word"]
    first, second = ({field["name"]: field for field in record["fields"]} for record in (a, b))
    for name in first | second:
        left, right = first.get(name), second.get(name)
        mark = " " if left == right else "*"
        yield f" {mark} {name:16} {_place(left):12} {_place(right)}".rstrip()
    for reader, record in ((one, a), (two, b)):
        yield f"  {reader.title}: {record['trace'] or 'no tracepoint prints it'}"
        yield from _plugin_note(record)


def _place(field: dict[str, Any] | None) -> str:
    return "-" if field is None else f"{field['bits']}: {field['value']}"


def _version(version: RoleVersion) -> dict[str, Any]:
    return {
        "since": version.since,
        "commits": [commit._asdict() for commit in version.commits],
        "why": version.why,
        "used_bits": version.layout.used_bits,
        "fields": _fields(version.layout),
        "traced": version.wording is not None,
    }


def _lacks(found: Backport) -> str:
    return f"{found.version.since.rpartition('.')[0]}.{found.lacks}"


def _all_versions() -> Iterator[RoleVersion]:
    yield from HISTORY
    yield from (found.version for found in BACKPORTS.values())


def _listed(known: dict[str, Any]) -> Iterator[str]:
    for version in known["versions"]:
        yield from _lines(version, version["since"])
    yield "stable releases that have another word than their x.y.0:"
    for version in known["backports"]:
        yield from _lines(version, f"{version['since']} (not in {version['not_in']})")
    yield "tools that print the word:"
    for tool in known["decoders"]:
        yield f"  {tool['name']}: {tool['source']}"
        yield "      bits:  " + " ".join(f"{field['name']}:{field['bits']}" for field in tool["fields"])
        yield "      right for the layouts of " + (", ".join(tool["reads_rightly"]) or "no kernel")
    yield "unions read: " + " ".join(known["sources_read"])


def _lines(version: dict[str, Any], title: str) -> Iterator[str]:
    yield f"{title}: {version['used_bits']} bits; {version['why']}"
    for commit in version["commits"]:
        yield f"      {commit['hash']} {commit['subject']}"
    yield "      bits: " + " ".join(f"{field['name']}:{field['bits']}" for field in version["fields"])
