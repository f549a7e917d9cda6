"""A progress bar on stderr, if someone sees it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")

__all__ = ["progress"]


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
