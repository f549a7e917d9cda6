"""What all event types have in common, and what takes them.

The types themselves are in :mod:`mmulab.events`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

__all__ = ["Event", "EventSink", "PageEvent"]


class Event(Protocol):
    """One of the types of :mod:`mmulab.events`, whichever it is; its fields are known once its type is.

    ``isinstance`` and ``type(event) is`` tell it. Each type is a NamedTuple.
    """

    @property
    def _fields(self) -> tuple[str, ...]: ...

    @property
    def _replace(self) -> Callable[..., Self]: ...

    def _asdict(self) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...


class PageEvent(Event, Protocol):
    """One of those that say the state of a shadow page."""

    @property
    def gfn(self) -> int: ...

    @property
    def role(self) -> int: ...

    @property
    def mmu_valid_gen(self) -> int: ...

    @property
    def root_count(self) -> int: ...

    @property
    def unsync(self) -> bool: ...


EventSink = Callable[[Event], None]
