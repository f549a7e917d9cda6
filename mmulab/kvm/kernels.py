"""The kernels that were recorded, and those made of them, by name.

Versions are compared in this file only. A stable tree, a patch of a mailing list or a
user's fork is another set of behaviours: ``6.12+unprotect_on_reinjection`` is a name, and
``LINUX_6_12.with_(...)`` a value. A bug whose fix is taken back is turned on like a
behaviour: ``6.1+B13``.

Source: Linux 6.1.192 and 6.12.117, ``arch/x86/kvm``.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mmulab.errors import InputError, quoted
from mmulab.kvm.behaviours import CHANGES, with_behaviours
from mmulab.kvm.bug import SWITCHES
from mmulab.kvm.event_words import EVENTS_6_12
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.design_check import is_built_in
from mmulab.kvm.roles.foreign import load_design, load_value
from mmulab.kvm.sync.unsync_children import unsync_children

_TOGGLE = re.compile(r"([+-])([A-Za-z]\w*)")
_VERSION = re.compile(r"\b\d+\.\d+\.[1-9]\d*\b")

LINUX_6_1 = Kernel("6.1.192", "Linux 6.1.192 (Debian 6.1.192-2)", unsync_children)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _at(release: str) -> dict[str, bool]:
    """Return what mainline changed from 6.1 up to a release."""
    return {
        change.name: not change.removed
        for change in CHANGES.values()
        if change.release and _release(change.release) <= _release(release)
    }


LINUX_6_12 = replace(
    LINUX_6_1,
    name="6.12.117",
    source="Linux 6.12.117 (Debian 6.12.117-1~deb12u1)",
    events=EVENTS_6_12,
    behaviours=with_behaviours(LINUX_6_1.behaviours, _at("6.12")),
)
KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (LINUX_6_1, LINUX_6_12)}
"""The kernels that were recorded, by release; a series, ``6.12``, names the same."""


def find_kernel(name: str) -> Kernel:
    """Return a kernel by name: a release or series, with behaviours and bugs on (``+``) and off (``-``).

    ``file.py:KERNEL`` and ``module:KERNEL`` name a user's own value, and take
    behaviours and bugs behind them too.

    Raises
    ------
    InputError
        A kernel, behaviour or bug is unknown, or one is named that is so already.
    """
    base, toggles = _split(name)
    kernel = _own(base) if ":" in base else known_kernel(base)
    if not toggles:
        return kernel
    wanted: dict[str, bool] = {}
    for sign, behaviour in toggles:
        if wanted.setdefault(behaviour, sign == "+") != (sign == "+"):
            raise InputError(f"kernel '{quoted(name)}': both +{behaviour} and -{behaviour}; leave one out")
    return kernel.toggled(**wanted)


def known_kernel(name: str) -> Kernel:
    """Return one of :data:`KERNELS` by its release or series; raises InputError."""
    for kernel in KERNELS.values():
        if name in (kernel.name, kernel.name.rpartition(".")[0]):
            return kernel
    raise InputError(
        f"kernel '{quoted(name)}': unknown; the kernels are {', '.join(KERNELS)}, "
        f"or file.py:KERNEL; behaviours ('mmulab kernels') and bugs ('mmulab bugs') follow as +NAME or -NAME"
    )


def nearest_recorded(kernel: Kernel) -> str:
    """Return the name of the kernel whose recordings show best what this one does."""
    return next((name for name in KERNELS if kernel.name.startswith(name)), LINUX_6_1.name)


def recorded_kernel(text: str) -> Kernel:
    """Return the kernel that a recording's header names, as ``uname`` and its distribution spell it.

    Raises
    ------
    InputError
        It is none of :data:`KERNELS`.
    """
    for version in _VERSION.findall(text):
        if version in KERNELS:
            return KERNELS[version]
    raise InputError(f"kernel '{quoted(text)}': unknown; recordings of {', '.join(KERNELS)} are understood")


def _split(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Take a name apart: the base, and each behaviour and bug with its sign."""
    found = _TOGGLE.finditer(name, name.rfind(":") + 1)
    at = next((m.start() for m in found if m[2] in CHANGES or m[2] in SWITCHES or m[1] == "+"), len(name))
    base, rest = name[:at], name[at:]
    toggles = _TOGGLE.findall(rest)
    if "".join(sign + behaviour for sign, behaviour in toggles) != rest:
        raise InputError(f"kernel '{quoted(name)}': expected +NAME or -NAME behind {quoted(base)}")
    return base, toggles


def _own(reference: str) -> Kernel:
    """Return a user's kernel; a design of its file's is loaded as one that `--design` names."""
    kernel = load_value(reference, Kernel, "kernel")
    if kernel.design.reference or is_built_in(type(kernel.design)):
        return kernel
    where = reference.rpartition(":")[0]
    return kernel.with_(design=load_design(f"{where}:{type(kernel.design).__name__}"))
