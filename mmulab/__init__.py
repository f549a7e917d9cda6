"""mmulab: KVM's shadow page tables on a laptop, event for event, with the design open to change.

The model runs guests of every x86 paging mode over shadow page tables kept the
way Linux 6.1.192 keeps them, records what the kernel's tracepoints would have
shown, and compares every access with what the architecture allows.

The house
---------
Imports point downward only, and a room never knows who lives above it; a test
holds to that.

=====  ======================  ===================================================
floor  room                    what lives there
=====  ======================  ===================================================
12     ``mmulab.__main__``     ``python -m mmulab``
11     ``mmulab.cli``          the command line
10     ``mmulab.lab``          experiments: cases, designs compared, validity; what
                               shows one is its ``view``
9      ``mmulab.report``       notebooks and functions run with checked parameters, in
                               sweeps; pages, provenance, results tables; what an
                               install lacks
8      ``mmulab.widgets``      the notebooks' controls and figures
7      ``mmulab.check``        the architectural oracle, the adversary's TLB;
                               fuzzer, explorer and shrinker
7      ``mmulab.record``       the same scenarios on a real kernel in an emulator, as
                               recordings
6      ``mmulab.scenario``     the scenario format and its runner; streams: sources
                               of ops
6      ``mmulab.workload``     guest builders and workloads
6      ``mmulab.conform``      comparison with recorded kernels
5      ``mmulab.ftrace``       traces of real kernels as text, in and out
4      ``mmulab.trace``        recorder and recordings
3      ``mmulab.machine``      VM and vCPUs; the *op*, and the one function that
                               executes it
2      ``mmulab.kvm``          the hypervisor's MMU, one concern a file; role
                               words and their designs in ``roles``; the kernel's
                               assertions, the invariants; historical bugs as switches
1      ``mmulab.memory``       host physical memory, memslots
0      ``mmulab.x86``          what the processor manuals define
0      ``mmulab.events``       the event types
0      ``mmulab.event``        what all of them have in common
0      ``mmulab.archive``      archives of arrays
0      ``mmulab.cluster``      works given to the workers of a dask scheduler
0      ``mmulab.parcel``       works packed for them: files by digest
0      ``mmulab.checks``       one thing that a machine may lack, and what to do about it
0      ``mmulab.digests``      digests of files, folders and this package
0      ``mmulab.files``        files read below a limit and written whole
0      ``mmulab.deadline``     a limit on the time that a user's code may take
0      ``mmulab.paths``        where the checkout keeps notebooks and data
0      ``mmulab.pool``         works given to this machine's processes
0      ``mmulab.errors``       the error that bad input raises
0      ``mmulab.limits``       what an input may at most be
=====  ======================  ===================================================

Two ideas hold it together. *The hardware only sees bits*: shadow tables are
frames of host memory and the processor's walk reads those frames, so a fault
of the hypervisor shows as what the guest sees. *Everything observable is an
event or a counter*: figures, reports and comparisons read those and nothing else.

Importing the package or its engine imports no notebook package. The names of ``__all__`` are the
front (:mod:`mmulab.lab.front`): each is imported when it is first asked for.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # type checkers take it for true; the module typing need not be imported
if TYPE_CHECKING:
    from mmulab.kvm.kernel import Kernel as Kernel
    from mmulab.lab.front import cases as cases
    from mmulab.lab.front import compare as compare
    from mmulab.lab.front import guest as guest
    from mmulab.lab.front import run as run
    from mmulab.machine.machine import Machine as Machine

__all__ = ["Kernel", "Machine", "__version__", "cases", "compare", "guest", "run"]

__version__ = "0.1.0"

_HOMES = {
    "Kernel": "mmulab.kvm.kernel",
    "Machine": "mmulab.machine.machine",
    "cases": "mmulab.lab.front",
    "compare": "mmulab.lab.front",
    "guest": "mmulab.lab.front",
    "run": "mmulab.lab.front",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmulab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
