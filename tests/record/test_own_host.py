"""This machine as a host: what it needs, what it is the host of, and how its end is told."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.record import own_host
from mmulab.record.own_host import NEEDS, Machine, OwnHost, read_machine
from mmulab.record.take import Take
from mmulab.scenario.scenario import HOST_DEFAULTS, Header
from mmulab.scenario.text import parse_scenario

DEFAULTS = {
    ("kvm", "tdp_mmu"): "Y",
    ("kvm", "eager_page_split"): "Y",
    ("kvm", "nx_huge_pages"): "N",
    ("kvm_amd", "npt"): "N",
    ("kvm_amd", "nested"): "1",
    ("kvm_amd", "vgif"): "1",
    ("kvm_amd", "nrips"): "0",
}
MACHINE = Machine("amd", 5, DEFAULTS, huge_pages=True)


def header(**host: int) -> Header:
    made = parse_scenario("mmulab-scenario 1\nmode np\nops\nnop\nend\n").header
    return replace(made, host={**HOST_DEFAULTS, **host})


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The files of a machine that has all that is needed."""
    for name, text in (
        ("proc/cpuinfo", "flags\t\t: fpu svm nx\naddress sizes\t: 40 bits physical, 48 bits virtual\n"),
        ("proc/sys/kernel/tainted", "4096\n"),
        ("proc/filesystems", "nodev\ttracefs\n\text4\n"),
        ("proc/17/comm", "qemu\n"),
        ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
        ("sys/module/kvm_amd/parameters/npt", "Y\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ("dev/kvm", ""),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "proc/17/fd").mkdir()
    return tmp_path


def test_a_machine_that_has_all_is_told_so(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [look(top) for look in NEEDS.values()] == [
        "this is root",
        "the processor has svm",
        "kvm_amd is loaded",
        "/dev/kvm can be read and written",
        "tracefs can be mounted",
        "no oops since the boot",
        "no other VM runs",
    ]


@pytest.mark.parametrize(
    ("need", "path", "text", "message"),
    [
        ("processor", "proc/cpuinfo", "flags : fpu nx\n", "neither svm nor vmx; turn them on"),
        ("modules", "sys/module/kvm_amd", None, "modprobe"),
        ("device", "dev/kvm", None, "/dev/kvm: there is none; load kvm_amd"),
        ("tracefs", "proc/filesystems", "\text4\n", "CONFIG_KPROBE_EVENTS"),
        ("oops", "proc/sys/kernel/tainted", "4224\n", "had an oops and is no longer to be trusted; reboot"),
    ],
)
def test_each_thing_that_lacks_is_said_with_the_mend(
    top: Path, need: str, path: str, text: str | None, message: str
) -> None:
    if text is None:
        (top / path).rename(top / "gone")
    else:
        (top / path).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        NEEDS[need](top)
    assert "\n" not in str(caught.value)


def test_another_vm_is_named(top: Path) -> None:
    (top / "proc/17/fd/3").symlink_to("/dev/null")
    (top / "proc/18").mkdir()  # it has ended: there is no fd any more
    (top / "proc/17/fd/5").touch()  # as if it had been closed: no link any more
    assert NEEDS["VMs"](top)
    (top / "proc/17/fd/4").symlink_to("anon_inode:kvm-vm")
    with pytest.raises(InputError, match=r"process 17 \(qemu\) runs a VM"):
        NEEDS["VMs"](top)


def test_one_who_is_not_root_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="sudo"):
        NEEDS["root"](top)


def test_what_the_machine_is_comes_from_its_files(top: Path) -> None:
    machine = read_machine(top)
    assert machine == Machine("amd", 4, {("kvm", "tdp_mmu"): "Y", ("kvm_amd", "npt"): "Y"}, False)
    assert str(machine.kernel_parameters()) == "amd, 4-level, tdp_mmu=Y npt=Y"


def test_a_machine_that_does_not_say_what_it_is_is_refused(top: Path) -> None:
    (top / "proc/cpuinfo").write_text("")
    with pytest.raises(InputError, match="use --deb"):
        read_machine(top)


def test_a_machine_is_the_host_of_what_wants_just_this_host() -> None:
    assert MACHINE.obstacle(header()) == ""
    assert MACHINE.obstacle(header(tdp_mmu=0)) == ""  # without NPT it is off in any case
    no_such = MACHINE._replace(parameters={k: v for k, v in DEFAULTS.items() if k[1] != "vgif"})
    assert no_such.obstacle(header()) == ""


@pytest.mark.parametrize(
    ("wanted", "parameters", "message"),
    [
        ({"npt": 1}, {}, "kvm_amd has npt=N; reload kvm_amd with npt=1 or use --deb"),
        ({"npt": 1, "tdp_mmu": 0}, {("kvm_amd", "npt"): "Y"}, "kvm has tdp_mmu=Y; reload kvm with tdp_mmu=0"),
        ({"nx_huge_pages": 1}, {}, "kvm has nx_huge_pages=N"),
        ({}, {("kvm", "nx_huge_pages"): "Y"}, "reload kvm with nx_huge_pages=0"),
        ({}, {("kvm_amd", "nrips"): "1", ("kvm_amd", "vgif"): "0"}, "has nrips=1, vgif=0; reload kvm_amd"),
        ({"virt_bits": 48}, {}, "tables have 5 levels, not 4; boot with no5lvl or use --deb"),
    ],
)
def test_another_host_is_said_with_the_mend(
    wanted: dict[str, int], parameters: dict[tuple[str, str], str], message: str
) -> None:
    machine = MACHINE._replace(parameters={**DEFAULTS, **parameters})
    assert message in machine.obstacle(header(**wanted))


def test_another_vendor_and_huge_pages_are_said() -> None:
    assert "use one of kvm_intel" in MACHINE.obstacle(replace(header(), vendor="intel"))
    never = MACHINE._replace(huge_pages=False)
    assert never.obstacle(header()) == ""
    assert "set it to madvise" in never.obstacle(replace(header(), thp=True))


# The VMM: a program in its place ----------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text("6,1,100,-;earlier words\n")
    return path


@pytest.fixture
def vmm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM that ends at once, as one that was killed."""
    program = tmp_path / "vmm_program"
    program.write_text("#!/bin/sh\nexit 137\n")
    program.chmod(0o755)
    monkeypatch.setattr(own_host, "compiled_vmm", lambda: program)
    monkeypatch.setattr(own_host, "NEEDS", {})


@pytest.fixture
def host(vmm: None, log: Path) -> Iterator[OwnHost]:
    with OwnHost(MACHINE.kernel_parameters(), log) as made:
        yield made


def test_the_kernels_words_are_told_from_the_start_of_the_host_on(host: OwnHost, log: Path) -> None:
    assert host.new_words() == []
    with log.open("a") as file:
        file.write("4,2,200,-;a word; and more\n SUBSYSTEM=pci\n6,3,300,-;the next\n")
    assert host.new_words() == ["a word; and more", "the next"]
    assert host.new_words() == []


def test_an_oops_is_the_hosts_death(host: OwnHost, log: Path) -> None:
    with log.open("a") as file:
        file.write("6,2,200,-;usb 1-1: new device\n1,3,300,-;BUG: kernel NULL pointer dereference\n")
        file.write("4,4,400,-;RIP: 0010:mmu_page_add_parent_pte+0x1/0x2\n")
    take = Take()
    assert host.collect(take, 10)
    assert take.error == ""
    assert host.last_words() == [
        "BUG: kernel NULL pointer dereference",
        "RIP: 0010:mmu_page_add_parent_pte+0x1/0x2",
    ]


def test_a_vmm_that_was_killed_is_a_failure_and_no_result(host: OwnHost, log: Path) -> None:
    with log.open("a") as file:
        file.write("6,2,200,-;usb 1-1: new device\n")
    take = Take()
    assert host.collect(take, 10)
    assert take.error == "the VMM ended with exit code 137, and the kernel said nothing of it"


def test_nothing_is_left_of_it(vmm: None, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "tmp"
    top.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(top))
    with OwnHost(MACHINE.kernel_parameters(), log):
        (folder,) = top.iterdir()
        assert {"link", "probes", "events"} <= {path.name for path in folder.iterdir()}
    assert list(top.iterdir()) == []
