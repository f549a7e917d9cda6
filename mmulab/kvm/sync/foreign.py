"""A user's own sync policy: a class in a file or a module of the user's.

It goes behind the same border as a role design (:mod:`mmulab.kvm.roles.foreign`):
whatever its code raises, or how long it runs, comes out as one kind of error that
names class and method.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from mmulab.kvm.roles.foreign import Border, module_of, subclass_in
from mmulab.kvm.sync.policy import SyncPolicy

HOOKS = tuple(
    name for name, found in vars(SyncPolicy).items() if inspect.isfunction(found) and not name.startswith("_")
)
"""What the engine calls."""


def load_policy(reference: str) -> SyncPolicy:
    """Return the policy that ``file.py:Class`` or ``module:Class`` names.

    Raises
    ------
    DesignError
        There is none, or it says nothing about which pages go out of sync.
    """
    where, _, wanted = reference.rpartition(":")
    border = Border(reference, "sync policy")
    with contextlib.redirect_stdout(sys.stderr):
        module, _digest = module_of(border, where)
        found = subclass_in(border, module, where, wanted, SyncPolicy)
        if found.try_to_unsync is SyncPolicy.try_to_unsync:
            raise border.error("", f"{wanted} has no method try_to_unsync")
        policy: SyncPolicy = border.run("", _guarded(border, found))
    return policy


def _guarded(border: Border, found: type[SyncPolicy]) -> type[SyncPolicy]:
    """Return a subclass whose own methods run behind the border; inherited ones of mmulab's do not."""

    def text(self: SyncPolicy) -> str:
        return border.reference

    def again(self: SyncPolicy) -> tuple[Any, ...]:
        return load_policy, (border.reference,)

    body: dict[str, Any] = {"__str__": text, "__reduce__": again, "__module__": found.__module__}
    for name in HOOKS:
        method = getattr(found, name)
        if not method.__module__.startswith("mmulab."):
            body[name] = _behind(border, name, method)
    return type(found.__name__, (found,), body)


def _behind(border: Border, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that lets nothing out but what the engine itself raises, and design errors."""

    def guarded(self: SyncPolicy, *args: Any, **kwargs: Any) -> Any:
        return border.run(f".{name}", method, self, *args, **kwargs)

    return guarded
