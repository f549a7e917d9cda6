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

from mmulab.errors import InputError, near, quoted
from mmulab.kvm.behaviours import CHANGES, with_behaviours
from mmulab.kvm.bug import SWITCHES
from mmulab.kvm.event_words import EVENTS_6_12
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.release import read_release_name
from mmulab.kvm.roles.design_check import is_built_in
from mmulab.kvm.roles.foreign import load_design, load_value
from mmulab.kvm.sync.unsync_children import unsync_children

_TOGGLE = re.compile(r"([+-])([A-Za-z]\w*)")
_IS_RELEASE = re.compile(r"$|[-~+_]*[a-z]*[0-9]|\+$")
"""What may follow a release's numbers in a distribution's name; a word is a behaviour or bug misspelt."""
_MISSPELT = re.compile(r"([0-9.]*)([+-]?)(.*)", re.DOTALL)
"""A release, a sign and what is neither a behaviour nor a bug."""
_FLAVOUR = re.compile(r"deb[0-9]+|debug|rt|64k")
"""What follows a ``+`` in the name of a distribution's kernel."""
_VERSION = re.compile(r"\b\d+\.\d+\.[1-9]\d*\b")

LINUX_6_1 = Kernel("6.1.192", "Linux 6.1.192 (Debian 6.1.192-2)", unsync_children)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _at(release: str) -> dict[str, bool]:
    """Return what mainline changed from 6.1 up to a release."""
    return {
        change.name: not change.removed
        for change in CHANGES.values()
        if _release(change.release) <= _release(release)
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
        if name in (kernel.name, _series(kernel)):
            return kernel
    raise InputError(f"kernel '{quoted(name)}': {_unknown(name)}")


def _unknown(name: str) -> str:
    base, sign, toggle = _MISSPELT.findall(name)[0]
    hint = near(toggle, [*CHANGES, *SWITCHES]).replace("'", f"'{base}{sign}", 1) if sign else ""
    return (
        f"unknown; {hint}the kernels are {', '.join(KERNELS)}, or file.py:KERNEL; "
        f"behaviours ('mmulab kernels') and bugs ('mmulab bugs') follow as +NAME or -NAME"
    )


def _series(kernel: Kernel) -> str:
    return kernel.name.rpartition(".")[0]


def spelled(name: str) -> tuple[str, str]:
    """Return the name of the kernel that stands for a release's, and what is to be said of that.

    A distribution's name, and a release that was not recorded, stand for the kernel of their series.

    Raises
    ------
    InputError
        It is a release of a series of which there is no kernel.

    Examples
    --------
    >>> spelled("6.1.192-2+B13")
    ('6.1.192+B13', 'kernel 6.1.192-2: taken as 6.1.192')
    >>> spelled("6.12")
    ('6.12', '')
    """
    base, toggles = (name, []) if ":" in name else _split(name)
    release = None if any(base in (k.name, _series(k)) for k in KERNELS.values()) else read_release_name(base)
    if release is None or not _IS_RELEASE.match(release.suffix):
        return name, ""
    kernel = next((k for k in KERNELS.values() if _release(_series(k)) == release.series), None)
    if kernel is None:
        taken = "" if release.is_plain else f" ({release.said()})"
        raise InputError(f"kernel '{quoted(base)}'{taken}: {_unknown(base)}")
    why = f"{release.open}; " if release.open else ""
    if not release.open and release.taken_as != kernel.name:
        why = "not recorded; " if release.is_plain else f"{release.taken_as} was not recorded; "
    said = f"kernel {quoted(base)}: {why}taken as {kernel.name}"
    return kernel.name + "".join(sign + toggle for sign, toggle in toggles), said


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
    at = next((match.start() for match in found if _is_toggle(match)), len(name))
    base, rest = name[:at], name[at:]
    toggles = _TOGGLE.findall(rest)
    if "".join(sign + behaviour for sign, behaviour in toggles) != rest:
        raise InputError(f"kernel '{quoted(name)}': expected +NAME or -NAME behind {quoted(base)}")
    return base, toggles


def _is_toggle(match: re.Match[str]) -> bool:
    """Whether a sign and a name turn something on or off, rather than belong to the kernel's name."""
    sign, name = match.groups()
    return name in CHANGES or name in SWITCHES or (sign == "+" and not _FLAVOUR.fullmatch(name))


def _own(reference: str) -> Kernel:
    """Return a user's kernel; a design of its file's is loaded as one that `--design` names."""
    kernel = load_value(reference, Kernel, "kernel")
    if kernel.design.reference or is_built_in(type(kernel.design)):
        return kernel
    where = reference.rpartition(":")[0]
    return kernel.with_(design=load_design(f"{where}:{type(kernel.design).__name__}"))
