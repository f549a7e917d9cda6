"""Functions that tests make experiments of."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from mmulab.report.results import Table


def powers(base: int, exponent: int = 2, label: str = "x", seed: int = 0, log: str = "") -> list[Table]:
    """Powers of a number.

    Each call adds a line to the file `log`, if one is named.
    """
    if log:
        with Path(log).open("a") as file:
            file.write(f"{base}\n")
    rows = [[number, number**exponent, label] for number in range(base)]
    return [Table("powers", ["number", "power", "label"], rows), Table("seeds", ["seed"], [[seed]])]


def troubled(how: str) -> Table:
    """Do something wrong."""
    if how == "raises":
        raise ZeroDivisionError("one by nothing")
    if how == "exits":
        sys.exit(3)
    if how == "endless":
        while True:
            pass
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "no table":
        return 5  # type: ignore[return-value]
    if how == "process":
        os._exit(9)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return Table("fine", ["how"], [[how]])


def large(rows: int) -> Table:
    """A table that needs room."""
    return Table("large", ["number"], [[number * 1_000_003] for number in range(rows)])


def odd(*values: int) -> Table:
    """Take what no experiment can give."""
    return Table("odd", ["value"], [[value] for value in values])


def untyped(value) -> Table:  # type: ignore[no-untyped-def]
    """Take a value of no type."""
    return Table("untyped", ["value"], [[value]])
