"""What a shell completes: names of works, designs, kernels and events; ``click`` asks at each TAB."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


def complete_works(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a case, or of a file."""
    from mmulab.lab.cases.table import cases

    return [*_begins(begun, (case.name for case in cases())), CompletionItem(begun, type="file")]


def complete_cases(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a case."""
    from mmulab.lab.cases.table import cases

    return _begins(begun, (case.name for case in cases()))


def complete_case_list(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the last of several cases, with commas between them."""
    before, comma, last = begun.rpartition(",")
    items = complete_cases(ctx, param, last)
    return [CompletionItem(f"{before}{comma}{item.value}") for item in items]


def complete_events(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of an event."""
    from mmulab.events import EVENT_TYPES

    return _begins(begun, EVENT_TYPES)


def complete_designs(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a role design's name or id."""
    from mmulab.kvm.roles.design import DESIGNS

    return _begins(begun, (name for d in DESIGNS.values() for name in (d.name, d.id) if name))


def complete_kernels(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a kernel's release."""
    from mmulab.kvm.kernels import KERNELS

    return _begins(begun, KERNELS)


def _begins(begun: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]
