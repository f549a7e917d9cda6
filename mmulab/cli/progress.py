"""A progress bar on stderr, or the seconds that something takes, if someone sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

PATIENCE = 2.0
"""Seconds before it is said that a command still works."""

__all__ = ["PATIENCE", "progress", "working"]


def progress(
    items: Generator[Item, None, None], total: int, unit: str, *, desc: str | None = None, show: bool = True
) -> Iterator[Item]:
    """Yield the items as they come, with a bar that counts them; however it ends, they are closed.

    Parameters
    ----------
    items : generator
    total : int
    unit, desc : str
        What is counted, and of what.
    show : bool
        False: no bar, even if someone sees it.
    """
    from tqdm import tqdm

    hidden = not show or not sys.stderr.isatty()
    with tqdm(total=total, desc=desc, unit=unit, leave=False, disable=hidden) as bar, closing(items):
        for item in items:
            bar.update()
            yield item


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal how long `what` takes, once it takes more than two seconds; clear that at the end.

    For work that cannot be counted. Nothing inside may start processes or print.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = Event()
    teller = Thread(target=_tell, args=(what, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _tell(what: str, done: Event) -> None:
    began = time.monotonic()
    if done.wait(PATIENCE):
        return
    while True:
        print(f"\r{what}: {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        if done.wait(1):
            break
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
