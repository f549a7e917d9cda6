"""Names of error-code bits."""

from __future__ import annotations

import pytest

from mmulab.x86.pferr import ACC_EXEC_MASK, ACC_STRINGS, ACC_USER_MASK, ACC_WRITE_MASK, pferr_str


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, ""), (1, "P"), (7, "P|W|U"), (0x15, "P|U|F"), (9, "P|RSVD"), (0x3F, "P|W|U|RSVD|F|PK")],
)
def test_error_codes_print_as_in_the_trace(code: int, text: str) -> None:
    assert pferr_str(code) == text


@pytest.mark.parametrize("access", range(8))
def test_access_strings_name_write_user_execute_in_this_order(access: int) -> None:
    wanted = "".join(
        letter if access & mask else "-"
        for letter, mask in (("w", ACC_WRITE_MASK), ("u", ACC_USER_MASK), ("x", ACC_EXEC_MASK))
    )
    assert ACC_STRINGS[access] == wanted
