"""What a machine lacks is said with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.record import build, doctor
from mmulab.record.tools import call, compiler, find_tool


def test_a_machine_with_nothing_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    says = {check.name: check for check in doctor.checks()}
    for name, package in (
        ("emulator", "qemu-system-x86"),
        ("compiler", "gcc libc6-dev"),
        ("packages", "dpkg"),
    ):
        assert not says[name].ok
        assert says[name].needed
        assert f"apt-get install {package}" in says[name].says
    assert not says["download"].needed
    assert says["intel hosts"] == ("intel hosts", False, says["intel hosts"].says, False)
    assert "apt-get install bochs" in says["intel hosts"].says
    assert says["cache"].ok
    assert "\n" not in "".join(check.says for check in says.values())


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = next(check for check in doctor.checks() if check.name == "cache")
    assert not cache.ok
    assert "XDG_CACHE_HOME" in cache.says


def test_another_compiler_is_asked_for_with_cc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(InputError, match="set CC to another"):
        compiler()


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(InputError, match="the VMM: "):
        build.compiled_vmm()
    assert not list((tmp_path / "mmulab/vmm").iterdir())


def test_what_a_program_says_last_is_in_the_message() -> None:
    with pytest.raises(InputError, match="thing: sh failed with 3: last"):
        call("thing", ["sh", "-c", "echo first; echo last; exit 3"])
    assert call("thing", ["sh", "-c", "echo yes"]) == "yes\n"
    assert find_tool("sh").endswith("/sh")
