"""A scenario on a real kernel: recorded by a host that stands in for QEMU, or read from data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mmulab.checks import Check
from mmulab.conform.recording import read_lines
from mmulab.errors import InputError
from mmulab.lab import kernel_run as module
from mmulab.lab.kernel_run import MISSING, find_work, kernel_run, named_works
from mmulab.record.boot import BootError
from mmulab.record.kernel_files import PACKAGES, KernelFiles
from mmulab.record.session import Recorded
from mmulab.record.work import Work

NAME = "sh/shared-pt-32"
EXAMPLE = "tests/scenario/examples/first_fault.mmu"


@pytest.fixture
def bootable(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """A machine that can record: it gives each scenario the recording of data. Returns what it recorded."""
    recorded: list[str] = []

    def record(works: Sequence[Work], kernel: str, *_: object) -> object:
        for work in works:
            recorded.append(f"{work.name} on {kernel}")
            lines = read_lines(root / f"data/conformance/6.1.192/{NAME}.jsonl.xz")
            yield Recorded(work, lines, ["the host's KVM does not have pku"], "", [], 0.1)

    monkeypatch.setattr(module, "record", record)
    monkeypatch.setattr(module, "from_deb", lambda package: package)
    monkeypatch.setattr(module, "cached_package", lambda package, release: Path(package))
    monkeypatch.setattr(module, "checks", lambda: [Check("emulator", True, "here")])
    return recorded


def test_it_is_recorded_where_it_can_be(bootable: list[str]) -> None:
    run = kernel_run(NAME, "6.1.192", "auto")
    assert bootable == [f"{NAME} on {PACKAGES['6.1.192']}"]
    assert run.path is None
    assert run.where == (
        "Linux 6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16); "
        "npt=0, tables of 5 levels; an AMD machine in QEMU; recorded just now"
    )
    assert run.notes == ("the host's KVM does not have pku",)
    assert "<li>the host&#x27;s KVM does not have pku</li>" in run._repr_html_()


@pytest.mark.parametrize("kernel", ["6.12.117", PACKAGES["6.12.117"], f"some/{PACKAGES['6.12.117']}_1.deb"])
def test_it_is_read_where_nobody_wants_it_recorded(bootable: list[str], root: Path, kernel: str) -> None:
    run = kernel_run(f"conformance/6.1.192/{NAME}", kernel, "never")
    assert run.path == root / f"data/conformance/6.12.117/{NAME}.jsonl.xz"
    assert run.recording.scenario.header.kernel == "6.12.117"
    assert run.where.endswith(f"recorded before: data/conformance/6.12.117/{NAME}.jsonl.xz")
    assert run.notes == ("not recorded anew: record is 'never'",)
    assert bootable == []


def test_only_what_data_lacks_is_recorded(bootable: list[str], root: Path) -> None:
    run = kernel_run(NAME, "6.12.117", MISSING)
    assert (run.path, run.notes) == (root / f"data/conformance/6.12.117/{NAME}.jsonl.xz", ())
    kernel_run(str(root / EXAMPLE), "6.1.192", MISSING)
    assert bootable == [f"first_fault on {PACKAGES['6.1.192']}"]


def test_further_recordings_are_found(bootable: list[str]) -> None:
    run = kernel_run("smp/smp-fuzz-pae-mix-00", "6.1.192", "never")
    assert "data/conformance-more/6.1.192/smp/smp-fuzz-pae-mix-00" in run.where


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"cached_package": lambda *_: None}, "-unsigned of 6.1.192 is not in the cache, and a notebook"),
        ({"checks": lambda: [Check("emulator", False, "install it")]}, "emulator: install it"),
    ],
    ids=["package", "emulator"],
)
def test_why_it_is_read_instead_is_said(
    bootable: list[str], monkeypatch: pytest.MonkeyPatch, broken: dict[str, object], why: str
) -> None:
    for name, value in broken.items():
        monkeypatch.setattr(module, name, value)
    run = kernel_run(NAME, "6.1.192", "auto")
    assert why in run.notes[0]
    assert run.path is not None
    assert bootable == []


def test_a_host_that_does_not_come_up(bootable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*_: object) -> object:
        raise BootError("the host did not come up within 120 s", ["Booting", "Kernel panic"])
        yield

    monkeypatch.setattr(module, "record", record)
    says = "the host did not come up within 120 s; its console's last line: Kernel panic"
    assert kernel_run(NAME, "6.1.192", "auto").notes == (f"not recorded anew: {says}",)
    with pytest.raises(InputError, match=f"record 'always': {says}"):
        kernel_run(NAME, "6.1.192", "always")


def test_always_may_download_and_fails_if_it_cannot(
    bootable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_deb(package: str) -> KernelFiles:
        raise InputError(f"--deb {package}: apt-get failed with 100")

    monkeypatch.setattr(module, "cached_package", lambda *_: None)
    kernel_run(NAME, "6.1.192", "always")
    assert len(bootable) == 1
    monkeypatch.setattr(module, "from_deb", from_deb)
    with pytest.raises(InputError, match=r"record 'always': --deb linux-image\S+: apt-get failed with 100"):
        kernel_run(NAME, "6.1.192", "always")


def test_no_notebook_waits_for_a_slow_boot_unless_told_to(bootable: list[str]) -> None:
    run = kernel_run("intel-sh/basic-64", "6.1.192", "auto")
    says = "an Intel host takes minutes to boot; record 'always' waits for it"
    assert run.notes == (f"not recorded anew: {says}",)
    assert not bootable


def test_what_is_neither_recorded_nor_in_data_is_refused(bootable: list[str]) -> None:
    with pytest.raises(InputError, match=r"not recorded: record is 'never'; and data has no recording of it"):
        kernel_run("shadow-32-l0-5", "6.1.192", "never")
    with pytest.raises(InputError, match=r"data has no recording of it on linux-image-9"):
        kernel_run(NAME, "linux-image-9", "never")


def test_a_name_is_one_scenario(root: Path) -> None:
    assert find_work(NAME, "6.12.117").scenario.header.kernel == "6.12.117"
    assert find_work(str(root / EXAMPLE), "").name == "first_fault"
    assert find_work("shadow-32-l0-5", "6.1.192").name == "shadow-32-l0-5"
    assert len(list(named_works("shadow-32-*"))) > 1
    with pytest.raises(InputError, match="it names 2 scenarios; name one"):
        find_work("shadow-32-l0-*", "6.1.192")
    with pytest.raises(InputError, match="case 'ghost': unknown"):
        find_work("ghost", "6.1.192")


def test_a_recording_of_ones_own_is_read(bootable: list[str], root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f"{x}\n" for x in read_lines(root / f"data/conformance/6.1.192/{NAME}.jsonl.xz")))
    run = kernel_run(str(own), "6.1.192", "never")
    assert run.path == own
    with pytest.raises(InputError, match=r"record is 'never'; and data has no recording of it on 6.12.117"):
        kernel_run(str(own), "6.12.117", "never")
    assert run.where.endswith(f"recorded before: {own}")
