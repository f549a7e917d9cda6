"""``mmulab pferr``: page-fault error codes, EPT exit qualifications and EXITINFO1, bit by bit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from mmulab.cli.number import read_hex, short
from mmulab.cli.words import STDIN, stdin_lines
from mmulab.errors import InputError
from mmulab.x86.fault_word import (
    EPT_VIOLATION,
    NPF,
    PAGE_FAULT,
    WORD_BITS,
    FaultForm,
    ept_violation_pferr,
    traced_pferr,
)

_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})\b"
_IN_LINES: tuple[tuple[re.Pattern[str], FaultForm], ...] = (
    (re.compile(r"\breason EPT_VIOLATION\b.*\binfo1? " + _HEX), EPT_VIOLATION),
    (re.compile(r"\breason npf\b.*\binfo1? " + _HEX), NPF),
    (re.compile(r"\b(?:error_code|pferr) " + _HEX), PAGE_FAULT),
)
"""Where lines of a trace tell a fault, and what of."""
_EPT_ALONE = 0x1F80
"""Bits of an exit qualification that no error code of today's processors has."""


class _Fault(NamedTuple):
    form: FaultForm
    word: int


@click.command()
@click.argument("words", metavar="WORD...", nargs=-1, required=True)
@click.option("--exit-qualification", "ept", is_flag=True, help="WORDs are exit qualifications of EPT.")
@click.option("--npf", is_flag=True, help="WORDs are EXITINFO1 of nested page faults (AMD).")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of lines.")
def pferr(words: tuple[str, ...], ept: bool, npf: bool, as_json: bool) -> None:
    """Show what page-fault error codes say: every bit by the kernel's name, and KVM's own high ones.

    A WORD is hexadecimal, with 0x or without, never decimal; or a line of a trace in quotes, with
    'error_code', 'pferr' or 'reason EPT_VIOLATION .. info1'. With '-' alone, standard input has
    such lines. Under EPT kvm_page_fault prints an exit qualification: give --exit-qualification.
    """
    if ept and npf:
        raise InputError("--exit-qualification and --npf: one is Intel's, the other AMD's; give one of them")
    asked = EPT_VIOLATION if ept else NPF if npf else None
    found = list(_of_stdin(asked) if words == (STDIN,) else (_read(word, asked) for word in words))
    records = [_record(fault) for fault in found]
    for line in [json.dumps(records, indent=1)] if as_json else (x for fault in found for x in _lines(fault)):
        click.echo(line)


def _of_stdin(asked: FaultForm | None) -> Iterator[_Fault]:
    lines = stdin_lines()
    some = False
    for line in lines:
        fault = _of_line(line, asked)
        if fault is None and read_hex(line) is not None:
            fault = _read(line, asked)
        if fault is None:
            click.echo(f"mmulab: passed over, no fault in it: {short(line)}", err=True)
            continue
        some = True
        yield fault
    if not some:
        raise InputError("standard input: no line has an error code; give words, or lines of a trace")


def _of_line(text: str, asked: FaultForm | None) -> _Fault | None:
    for pattern, form in _IN_LINES:
        if match := pattern.search(text):
            return _Fault(asked or form, int(match[1], 16))
    return None


def _read(text: str, asked: FaultForm | None) -> _Fault:
    if found := _of_line(text, asked):
        return found
    word = read_hex(text)
    if word is None:
        raise InputError(
            f"fault {short(text)}: give a hexadecimal number as 0x100000017, "
            "or a line of a trace with error_code, pferr or info1"
        )
    if not 0 <= word < 1 << WORD_BITS:
        raise InputError(f"fault {short(text)}: it has {WORD_BITS} bits; give 0 to {(1 << WORD_BITS) - 1:#x}")
    return _Fault(asked or PAGE_FAULT, word)


def _notes(fault: _Fault) -> list[str]:
    form, word = fault
    notes = form.notes(word)
    if form is PAGE_FAULT and word & _EPT_ALONE:
        notes.append("under EPT kvm_page_fault prints an exit qualification: see --exit-qualification")
    return notes


def _becomes(fault: _Fault) -> str:
    """Return what of the word a trace shows, or KVM makes."""
    form, word = fault
    if form is EPT_VIOLATION:
        return f"KVM takes it as error code {ept_violation_pferr(word):#x}"
    return f"the trace prints '{traced_pferr(word)}'"


def _lines(fault: _Fault) -> Iterator[str]:
    form, word = fault
    yield f"{word:#x}: {form.summary(word)}"
    yield f"  as {form.name}: {' '.join(form.labels(word)) or 'no bit set'}"
    for bit in reversed(form.bits):
        value = bool(word & bit.mask)
        if value or bit.is_clear:
            yield f"  {bit.bit:>4}  {bit.name:28} {value:d}  {bit.is_set if value else bit.is_clear}"
    yield f"  {_becomes(fault)}"
    yield from (f"  note: {note}" for note in _notes(fault))


def _record(fault: _Fault) -> dict[str, Any]:
    form, word = fault
    record: dict[str, Any] = {
        "word": hex(word),
        "read_as": form.name,
        "summary": form.summary(word),
        "flags": list(form.labels(word)),
        "bits": [
            {"bit": bit.bit, "name": bit.name, "set": bool(word & bit.mask), "meaning": bit.is_set}
            for bit in reversed(form.bits)
        ],
        "unknown_bits": hex(form.unknown(word)),
        "notes": _notes(fault),
    }
    if form is EPT_VIOLATION:
        return record | {"error_code": hex(ept_violation_pferr(word))}
    return record | {"trace": traced_pferr(word)}
