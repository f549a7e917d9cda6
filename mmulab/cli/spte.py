"""``mmulab spte``: shadow entries, read as a kernel and a host lay them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from mmulab.cli.group import Group
from mmulab.cli.number import read_hex, short
from mmulab.cli.options import kernel_name
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.spte_decode import MAX_LEVEL, DecodedSpte, decode_spte
from mmulab.machine.config import HostConfig
from mmulab.scenario.adapter import parse_host

_BITS = 64
_TABLES = {"amd": "NPT", "intel": "EPT"}


class Reading(NamedTuple):
    """An entry, and the kernel that reads it so."""

    kernel: Kernel
    entry: DecodedSpte


@click.group(cls=Group)
def spte() -> None:
    """Read shadow entries (sptes) bit by bit, as a kernel makes them on a host."""


@spte.command()
@click.argument("sptes", metavar="SPTE...", nargs=-1, required=True)
@click.option(
    "--kernel",
    "kernels",
    metavar="NAME",
    multiple=True,
    default=(LINUX_6_1.name,),
    show_default=True,
    help="Kernel ('mmulab kernels'): 6.12, 6.12-dummy_root, or file.py:KERNEL; may be given several times.",
)
@click.option(
    "--host",
    metavar="HOST",
    default="amd",
    show_default=True,
    help="Host as in a scenario, numbers in hexadecimal: 'intel ept=1 eptad=0 phys_bits=28 l1tf=1'.",
)
@click.option(
    "--level",
    metavar="N",
    type=click.IntRange(1, MAX_LEVEL),
    default=1,
    show_default=True,
    help="Level of the table that the entry lies in.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of lines.")
def decode(sptes: tuple[str, ...], kernels: tuple[str, ...], host: str, level: int, as_json: bool) -> None:
    """Show what each SPTE is: its kind, and every field by the kernel's name.

    SPTEs are hexadecimal, with 0x or without, as a trace prints them.
    """
    config = parse_host(host)
    words = [_read(text) for text in sptes]
    known = [find_kernel(kernel_name(name)) for name in kernels]
    formats = [(kernel, config.spte_format(kernel)) for kernel in known]
    found = [Reading(kernel, decode_spte(fmt, word, level)) for word in words for kernel, fmt in formats]
    tables = _tables_name(config)
    records = [_record(reading, tables) for reading in found]
    for line in [json.dumps(records, indent=1)] if as_json else _lines(found, tables):
        click.echo(line)


def _read(text: str) -> int:
    word = read_hex(text)
    if word is None:
        raise InputError(f"spte {short(text)}: give a hexadecimal number as 8300e67")
    if not 0 <= word < 1 << _BITS:
        raise InputError(f"spte {short(text)}: an entry has {_BITS} bits; give 0 to {(1 << _BITS) - 1:#x}")
    return word


def _tables_name(host: HostConfig) -> str:
    """Return what kind of tables a host's KVM fills."""
    return _TABLES[host.vendor] if host.tdp else "shadow paging"


def _lines(found: list[Reading], tables: str) -> Iterator[str]:
    for kernel, entry in found:
        yield str(entry)
        yield f"  as Linux {kernel} lays out {tables}"
        for field, value in entry.fields:
            yield f"  {field.bits:>11}  {field.name:32} {value:<#10x} {field.meaning(value)}".rstrip()
        if entry.unknown:
            yield f"  note: bits {entry.unknown:#x} belong to no field; this kernel does not set them here"


def _record(reading: Reading, tables: str) -> dict[str, Any]:
    kernel, entry = reading
    numbers = entry.numbers
    return {
        "spte": hex(entry.spte),
        "kernel": kernel.name,
        "tables": tables,
        "level": entry.level,
        "kind": entry.kind.name.lower(),
        "pfn": numbers.get("pfn"),
        "gfn": numbers.get("gfn"),
        "flags": list(entry.flags),
        "fields": [
            {"name": field.name, "bits": field.bits, "value": value, "meaning": field.meaning(value)}
            for field, value in entry.fields
        ],
        "unknown_bits": hex(entry.unknown),
    }
