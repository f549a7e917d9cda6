"""Options that several commands share: which kernel a machine has, and who does the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import click

from mmulab.cli.complete import complete_designs, complete_kernels
from mmulab.cluster import Cluster
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel, spelled
from mmulab.kvm.roles.derivation import find_derivation
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.root_strategy import find_root_strategy
from mmulab.kvm.sync.find import find_sync
from mmulab.pool import Jobs

SCHEDULER = click.option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    help="Work on this dask.distributed scheduler's workers instead, with the same mmulab on all.",
)

Command = TypeVar("Command", bound=Callable[..., Any])


def kernel_name(name: str) -> str:
    """Return the name of the kernel that a release's name stands for; say so on stderr if it is another."""
    found, said = spelled(name)
    if said:
        click.echo(f"mmulab: {said}", err=True)
    return found


def _kernel_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else kernel_name(value)


_KERNEL = click.option(
    "--kernel",
    metavar="NAME",
    callback=_kernel_name,
    shell_complete=complete_kernels,
    show_default=f"{LINUX_6_1}, or the recording's",
    help="Kernel ('mmulab kernels'): 6.12, 6.1.0-31-amd64, 6.12-dummy_root, or file.py:KERNEL.",
)
_DESIGN = click.option(
    "--design",
    metavar="NAME",
    shell_complete=complete_designs,
    show_default=LINUX_6_1.design.name,
    help="Role design, by name or id ('mmulab designs'), or module:Class or file.py:Class.",
)
_DERIVATION = click.option(
    "--derivation",
    metavar="NAME",
    show_default=LINUX_6_1.derivation.name,
    help="How roles of child pages come about.",
)
_ROOTS = click.option(
    "--roots",
    metavar="NAME",
    show_default=LINUX_6_1.root_strategy.name,
    help="What roots above the guest's own tables are: special, shadow or one_off.",
)
_SYNC = click.option(
    "--sync",
    metavar="NAME",
    show_default=str(LINUX_6_1.sync),
    help="Sync policy ('mmulab designs'), varied as in oos_2008+index=lru, or file.py:Class.",
)


class KernelChoice(NamedTuple):
    """What the command line says of the kernel; what was left out is None."""

    kernel: str | None = None
    design: str | None = None
    derivation: str | None = None
    roots: str | None = None
    sync: str | None = None

    @property
    def given(self) -> bool:
        """Whether anything was said."""
        return any(value is not None for value in self)

    def told(self) -> list[str]:
        """Return what was said, each with what it is of."""
        return [f"{name} {value}" for name, value in self._asdict().items() if value is not None]

    @property
    def is_own(self) -> bool:
        """Whether the kernel is a value of the user's file, which no header can name."""
        return self.kernel is not None and ":" in self.kernel

    @property
    def changes_design(self) -> bool:
        """Whether words, roots or syncs may differ from the kernel's own."""
        return any(value is not None for value in (self.design, self.derivation, self.roots, self.sync))

    def over(self, base: Kernel) -> Kernel:
        """Return the kernel that was asked for, and `base` in what was not.

        Raises
        ------
        InputError
            A kernel, behaviour, design, derivation, root strategy or sync policy is unknown.
        """
        kernel = base if self.kernel is None else find_kernel(self.kernel)
        if self.design is not None:
            kernel = kernel.with_(design=find_design(self.design))
        if self.derivation is not None:
            kernel = kernel.with_(derivation=find_derivation(self.derivation))
        if self.roots is not None:
            kernel = kernel.with_(root_strategy=find_root_strategy(self.roots))
        if self.sync is not None:
            kernel = kernel.with_(sync=find_sync(self.sync))
        return kernel


def workers(jobs: int, scheduler: str | None, *, in_order: bool = True) -> Jobs:
    """Return who does the works that ``--jobs`` and ``--scheduler`` ask for."""
    return jobs if scheduler is None else Cluster(scheduler, in_order)


def kernel_options(command: Command) -> Command:
    """Add ``--kernel``, ``--design``, ``--derivation``, ``--roots`` and ``--sync``: the argument `choice`."""
    return _KERNEL(_DESIGN(_DERIVATION(_ROOTS(_SYNC(_chooses(command))))))


def rule_options(command: Command) -> Command:
    """Add them without ``--design``, for a command that takes several designs."""
    return _KERNEL(_DERIVATION(_ROOTS(_SYNC(_chooses(command)))))


def kernel_design_options(command: Command) -> Command:
    """Add ``--kernel`` and ``--design`` alone."""
    return _KERNEL(_DESIGN(_chooses(command)))


def _chooses(command: Command) -> Command:
    """Give the command one argument `choice` in place of the options' own."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        told = {name: kwargs.pop(name, None) for name in KernelChoice._fields}
        return command(*args, choice=KernelChoice(**told), **kwargs)

    return cast("Command", wrapped)
