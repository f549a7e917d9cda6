"""``mmulab kernels``."""

from __future__ import annotations

import json

from mmulab.kvm.behaviours import CHANGES
from tests.conftest import CommandLine


def test_the_kernels_and_their_behaviours(command: CommandLine) -> None:
    lines = command("kernels").stdout.splitlines()
    assert lines[0].startswith("6.1.192 ")
    assert lines[1].strip() == "design D4 passthrough, parity, special roots, unsync_children"
    said = json.loads(command("kernels", "--json").stdout)
    assert [kernel["name"] for kernel in said["kernels"]] == ["6.1.192", "6.12.117"]
    assert [change["name"] for change in said["behaviours"]] == list(CHANGES)


def test_what_differs_has_commits_and_words(command: CommandLine) -> None:
    lines = command("kernels", "diff", "6.1.192", "6.12.117").stdout.splitlines()
    assert "+ dummy_root: since 6.7, 0e3223d8d00a" in lines
    assert "~ kvm_mmu_pte_write is kvm_mmu_track_write" in lines
    assert "~ RET_PF number 3: INVALID is WRITE_PROTECTED" in lines
    assert lines[-1] == f"kernels: {len(CHANGES) - 1} behaviours differ", "one is a fix that no release has"
    said = json.loads(command("kernels", "diff", "6.12", "6.12-dummy_root", "--json").stdout)
    assert (list(said["behaviours"]), said["words"]) == (["dummy_root"], [])
    assert said["behaviours"]["dummy_root"]["on"] is False


def test_bugs_differ_too(command: CommandLine) -> None:
    lines = command("kernels", "diff", "6.1+B7", "6.1+B2").stdout.splitlines()
    assert lines == [
        "+ bug B2: Fix shadow paging use-after-free due to unexpected role",
        "- bug B7: Check write tracking in all address spaces",
        "kernels: 0 behaviours differ, 2 bugs",
    ]
    said = json.loads(command("kernels", "diff", "6.1", "6.1+B2", "--json").stdout)
    assert (said["behaviours"], said["bugs"]) == ({}, {"B2": True})


def test_an_unknown_kernel(command: CommandLine) -> None:
    error = command.error("kernels", "diff", "6.1", "6.2")
    assert error.startswith("kernel '6.2': unknown; the kernels are 6.1.192")
