"""The conformance figure: how many recordings of a kernel agree with the model, folder by folder."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from mmulab import paths
from mmulab.conform.compare import Comparison, Level, compare
from mmulab.conform.recording import find_recordings, read_recording
from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.report.results import Table

__all__ = ["conformance"]


def conformance(
    kernel: Kernel, pattern: str, done: Callable[[int, int], None] = lambda at, of: None
) -> Table:
    """Compare recordings of a kernel with the model, in every event, outcome and statistic.

    Parameters
    ----------
    kernel : Kernel
    pattern : str
        Which recordings: ``*`` for all, ``sh/*`` for those of one host's folder.
    done : callable
        Told after each recording how many are compared, and of how many.

    Returns
    -------
    Table
        ``conformance``: a row a folder, with those that were not compared too; a report's first page
        sums it up.

    Raises
    ------
    InputError
        No recording of the kernel fits.
    """
    folder = paths.data(f"conformance/{kernel}")
    known = find_recordings([str(folder)])
    chosen = {path for path in known if fnmatchcase(_name(path, folder), pattern)}
    if not chosen:
        some = ", ".join(dict.fromkeys(f"{path.parent.name}/*" for path in known))
        raise InputError(f"'{quoted(pattern)}': no recording of {kernel} has this name; there are {some}")
    compared: dict[Path, Comparison] = {}
    for path in known:
        if path in chosen:
            compared[path] = compare(read_recording(path), Level.FULL)
            done(len(compared), len(chosen))
    rows = []
    for host, group in groupby(known, key=lambda path: path.parent.name):
        of_host = list(group)
        found = [compared[path] for path in of_host if path in compared]
        rows.append(
            [
                str(kernel),
                host,
                len(of_host),
                len(found),
                sum(one.agrees for one in found),
                sum(one.ops for one in found),
                sum(one.ops_agree for one in found),
                sum(one.events for one in found),
                sum(one.events_agree for one in found),
            ]
        )
    columns = ["kernel", "host", "recordings", "compared", "agree"]
    columns += ["ops", "ops agree", "events", "events agree"]
    said = f"{sum(one.agrees for one in compared.values())} of {len(compared)} recordings agree"
    return Table("conformance", columns, rows, f"{said}, of all {len(known)} of Linux {kernel}.")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().partition(".")[0]
