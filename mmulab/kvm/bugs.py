"""The catalogue: the historical bugs of KVM's MMU, by id.

What is said of a bug is read in its fix, in the CVE's record and in the sources of the
kernels; where no source says, the field is empty (:class:`mmulab.kvm.bug.Bug`). The
switch of a bug undoes its fix in 6.1.192 or restores what the code before it did.
"""

from __future__ import annotations

from mmulab.errors import find_named
from mmulab.kvm.bug import Bug
from mmulab.kvm.bugs_bookkeeping import BOOKKEEPING_BUGS
from mmulab.kvm.bugs_fault import FAULT_BUGS
from mmulab.kvm.bugs_role import ROLE_BUGS
from mmulab.kvm.bugs_sync import SYNC_BUGS

BUGS: dict[str, Bug] = {bug.id: bug for bug in (*BOOKKEEPING_BUGS, *ROLE_BUGS, *SYNC_BUGS, *FAULT_BUGS)}
"""Every bug, B1 to B34c."""


def find_bug(id: str) -> Bug:
    """Return a bug of the catalogue.

    Raises
    ------
    InputError
        The name is unknown.
    """
    return find_named(BUGS, id, "bug", "bugs")
