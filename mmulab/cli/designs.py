"""``mmulab designs``: the role designs and child-role derivations that experiments choose from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from mmulab.kvm.roles.derivation import DERIVATIONS
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES
from mmulab.kvm.sync.find import SYNC_POLICIES
from mmulab.lab.designs.era import LATER

_TITLES = {
    "derivations": "child-role derivations",
    "root_strategies": "root strategies",
    "sync_policies": "sync policies",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def designs(as_json: bool) -> None:
    """Show the role designs, each with the layout of its word, child-role derivations, root strategies.

    Options take a design by its name or its id. 'mmulab compare' finds out which are wrong where.
    """
    known = {
        "designs": [_record(design) for design in DESIGNS.values()],
        "derivations": {
            rule.name: {"summary": rule.summary, "source": rule.source} for rule in DERIVATIONS.values()
        },
        "root_strategies": {
            kept.name: {"summary": kept.summary, "source": kept.source} for kept in ROOT_STRATEGIES.values()
        },
        "sync_policies": {
            policy.name: {"summary": policy.summary, "source": policy.source}
            for policy in SYNC_POLICIES.values()
        },
    }
    for line in [json.dumps(known)] if as_json else _lines(known):
        click.echo(line)


def _record(design: RoleDesign) -> dict[str, Any]:
    shift = design.layout.shift
    fields = [
        {"name": name, "lowest_bit": shift[name], "width": design.layout.width_of(name)} for name in shift
    ]
    return {
        "id": design.id,
        "name": design.name,
        "summary": design.summary,
        "source": design.source,
        "before": list(LATER.get(design.name, ())),
        "used_bits": design.layout.used_bits,
        "width": design.layout.width,
        "fields": fields,
    }


def _lines(known: dict[str, Any]) -> Iterator[str]:
    for design in known["designs"]:
        bits = f"{design['used_bits']} of {design['width']} bits"
        yield f"{design['id']:4} {design['name']:22} {bits:16} {design['summary']}"
        yield f"     source: {design['source']}"
        yield "     bits:   " + " ".join(map(_field, design["fields"]))
        later = design["before"]
        yield "     modes:  " + (f"of its time, before {', '.join(later)}" if later else "all")
    for choices in ("derivations", "root_strategies", "sync_policies"):
        yield f"{_TITLES[choices]}:"
        for name, rule in known[choices].items():
            yield f"     {name:22} {rule['summary']}"
            yield f"     {'':22} source: {rule['source']}"


def _field(field: dict[str, Any]) -> str:
    low, width = field["lowest_bit"], field["width"]
    return f"{field['name']}:{low}" + (f"-{low + width - 1}" if width > 1 else "")
