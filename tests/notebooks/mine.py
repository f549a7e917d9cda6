"""A reader's own role design: the word before the fix under another name."""

from __future__ import annotations

from mmulab.kvm.roles.design import PreFix


class Mine(PreFix):
    """It forgets what D0 forgets."""

    id, name = "M", "mine"
