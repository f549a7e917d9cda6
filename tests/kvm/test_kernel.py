"""A kernel as a value: its rules have known names."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1


@pytest.mark.parametrize("name", ["cpuid_after_run", "free_roots_lock", "eager_split"])
def test_a_rule_that_no_kernel_has(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 'maybe', expected "):
        LINUX_6_1.with_(**{name: "maybe"})
