"""What a console says of a kernel's death, and what a killed run leaves behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.record import boot
from mmulab.record.boot import _own_folder, console_lines, death_words
from mmulab.record.host import KernelParameters
from mmulab.record.kernel_files import from_build
from mmulab.scenario.scenario import HOST_DEFAULTS

CONSOLE = (
    b"\x1b[0m[    1.234567] kvm: warning\r\n"
    b"[   12.5] BUG: kernel NULL pointer dereference, address: 0000000000000008\r\n"
    b"\r\n[   12.6] RIP: 0010:mmu_page_add_parent_pte+0x1/0x2\r\n"
    b"[   12.7] Kernel panic - not syncing: Fatal exception\r\n"
)


def test_lines_come_without_times_and_control_characters() -> None:
    assert console_lines(CONSOLE)[0] == "kvm: warning"
    assert len(console_lines(CONSOLE)) == 4


def test_a_death_is_told_from_its_first_line_on() -> None:
    assert death_words(console_lines(CONSOLE)) == [
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "RIP: 0010:mmu_page_add_parent_pte+0x1/0x2",
        "Kernel panic - not syncing: Fatal exception",
    ]


def test_a_death_without_a_word_is_said() -> None:
    assert death_words([])[0].startswith("nothing")


def test_a_host_that_cannot_be_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bzImage").write_bytes(b"image")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(boot, "compiled_vmm", lambda: tmp_path / "bzImage")
    host = KernelParameters.of_header("intel", {**HOST_DEFAULTS, "virt_bits": 48})
    with pytest.raises(InputError, match="Bochs has 2048 at most"):
        boot.Host(from_build(tmp_path / "bzImage", None), host, 2 << 30)
    assert [path.name for path in tmp_path.iterdir()] == ["bzImage"]


def test_what_a_killed_run_left_is_swept_and_a_running_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    running, held = _own_folder()
    killed, left = _own_folder()
    (killed / "link").touch()
    os.close(left)
    third, other = _own_folder()
    assert running.exists()
    assert not killed.exists()
    os.close(held)
    os.close(other)
    assert third.exists()
