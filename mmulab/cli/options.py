"""Options that several commands share: which role design a machine has, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mmulab.kvm.roles.derivation import Derivation, find_derivation, parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign, find_design

Command = TypeVar("Command", bound=Callable[..., Any])
_DEFAULT = DESIGNS["passthrough"]

_DESIGN = click.option(
    "--design",
    metavar="NAME",
    show_default=_DEFAULT.name,
    help="Role design, by name or id ('mmulab designs'), or module:Class or file.py:Class.",
)
_DERIVATION = click.option(
    "--derivation", metavar="NAME", show_default=parity.name, help="How roles of child pages come about."
)
_ROOTS = click.option(
    "--roots",
    metavar="NAME",
    show_default=_DEFAULT.root_strategy.name,
    help="What roots above the guest's own tables are: special, shadow or one_off.",
)


def design_options(command: Command) -> Command:
    """Add ``--design``, ``--derivation`` and ``--roots``, which are None if left out."""
    return _DESIGN(rule_options(command))


def rule_options(command: Command) -> Command:
    """Add ``--derivation`` and ``--roots`` alone, for a command that takes several designs."""
    return _DERIVATION(_ROOTS(command))


def design_option(command: Command) -> Command:
    """Add ``--design`` alone."""
    return _DESIGN(command)


def chosen_design(design: str | None, roots: str | None = None) -> RoleDesign:
    """Return the design that was asked for, the default one if none was, with the roots asked for.

    Raises
    ------
    InputError
        No design or root strategy is called so.
    """
    found = _DEFAULT if design is None else find_design(design)
    return found if roots is None else found.with_root_strategy(roots)


def chosen_derivation(derivation: str | None) -> Derivation:
    """Return the derivation that was asked for, ``parity`` if none was.

    Raises
    ------
    InputError
        No derivation is called so.
    """
    return parity if derivation is None else find_derivation(derivation)
