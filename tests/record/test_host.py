"""Which host a scenario wants, and what a booted one says of itself."""

from __future__ import annotations

import struct

import pytest

from mmulab.errors import InputError
from mmulab.record.host import HostFacts, KernelParameters, parse_parameters
from mmulab.scenario.scenario import HOST_DEFAULTS


def test_a_host_by_default_is_told_npt_and_where_that_is_on_tdp_mmu() -> None:
    host = KernelParameters.of_header("amd", HOST_DEFAULTS)
    assert host.levels == 5
    assert host.modules == (("kvm_amd", "npt", "0"),)
    host = KernelParameters.of_header("amd", {**HOST_DEFAULTS, "npt": 1})
    assert host.modules == (("kvm", "tdp_mmu", "1"), ("kvm_amd", "npt", "1"))


def test_departures_of_a_header_are_told() -> None:
    wanted = {**HOST_DEFAULTS, "virt_bits": 48, "npt": 1, "nx_huge_pages": 1, "eager_page_split": 0}
    host = KernelParameters.of_header("amd", wanted)
    assert host.levels == 4
    assert host.of_module("kvm") == ["tdp_mmu=1", "eager_page_split=0", "nx_huge_pages=force"]


def test_the_command_line_changes_a_host() -> None:
    host = KernelParameters.of_header("amd", HOST_DEFAULTS)
    other = host.changed(4, parse_parameters("npt=1,kvm_amd.avic=1"))
    assert other.levels == 4
    assert other.of_module("kvm_amd") == ["npt=1", "avic=1"]
    assert host.changed(None, ()) == host


@pytest.mark.parametrize("text", ["npt", "npt=", "=1", "npt=0 x", "ghost=1", "kvm_sgx.ept=0"])
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--kvm"):
        parse_parameters(text)


def test_an_intel_host_is_told_ept_and_where_that_is_on_what_goes_with_it() -> None:
    wanted = {**HOST_DEFAULTS, "virt_bits": 48}
    assert KernelParameters.of_header("intel", wanted).modules == (("kvm_intel", "ept", "0"),)
    host = KernelParameters.of_header("intel", {**wanted, "ept": 1, "eptad": 0, "tdp_mmu": 0})
    assert host.of_module("kvm") == ["tdp_mmu=0"]
    assert host.of_module("kvm_intel") == ["ept=1", "eptad=0", "pml=0", "unrestricted_guest=0"]


def test_a_parameter_of_both_vendors_goes_to_the_hosts_own_module() -> None:
    changes = parse_parameters("nested=0,ept=1")
    amd = KernelParameters.of_header("amd", HOST_DEFAULTS).changed(None, changes)
    assert amd.modules == (("kvm_amd", "npt", "0"), ("kvm_amd", "nested", "0"))
    intel = KernelParameters.of_header("intel", HOST_DEFAULTS).changed(None, changes)
    assert intel.of_module("kvm_intel") == ["ept=1", "nested=0"]


def facts() -> HostFacts:
    made = HostFacts()
    for name, text in (
        ("release", "6.1.0-56-amd64"),
        ("version", "#1 SMP Debian 6.1.192-2"),
        ("cpuinfo", "processor : 0\naddress sizes\t: 40 bits physical, 57 bits virtual\n"),
        ("param/kvm/tdp_mmu", "Y\n"),
        ("param/kvm_amd/npt", "N\n"),
        ("param/kvm_amd/avic", "N\n"),
        ("kvmmmu", "kvm_mmu_zap_all_fast"),
        ("kvmmmu", "check_mmio_spte"),
        ("probe/kvm_mmu_pte_write", "kvm_mmu_track_write gpa=%si:x64"),
    ):
        made.add_file(name.encode() + b"\0" + text.encode())
    entry = struct.pack("<10I", 0x80000008, 0, 0, 40, 0, 0, 0, 0, 0, 0)
    made.add_cpuid(entry + struct.pack("<10I", 7, 0, 1, 0, 1 << 7, 1 << 16, 0, 0, 0, 0))
    return made


def test_the_header_of_a_recording_has_what_the_host_says() -> None:
    host = facts()
    assert host.phys_bits == 40
    assert host.probes == {"kvm_mmu_pte_write": "kvm_mmu_track_write"}
    assert (host.supported["maxphyaddr"], host.supported["smep"], host.supported["la57"]) == (40, 1, 1)
    header = host.header("amd", host.supported)
    assert header["host"] == {
        "kernel": "6.1.0-56-amd64 #1 SMP Debian 6.1.192-2",
        "host_phys_bits": 40,
        "host_virt_bits": 57,
        "params": {"kvm.tdp_mmu": "Y", "kvm_amd.npt": "N"},
        "kvmmmu_events": ["check_mmio_spte", "kvm_mmu_zap_all_fast"],
    }
    assert "invpcid" not in header["cpuid"]
    assert list(header["cpuid"])[-3:] == ["la57", "svm", "pcid"]
    intel = host.header("intel", host.supported)
    assert list(intel["cpuid"])[-3:] == ["la57", "vmx", "pcid"]
    assert intel["host"]["params"] == {"kvm.tdp_mmu": "Y"}


def test_a_parameter_that_the_modules_do_not_have_is_said() -> None:
    host, wanted = facts(), KernelParameters.of_header("amd", HOST_DEFAULTS)
    host.check(wanted)
    with pytest.raises(InputError, match=r"has no kvm\.ghost"):
        host.check(wanted.changed(None, (("kvm", "ghost", "1"),)))


def test_what_a_module_did_not_take_is_said() -> None:
    host, wanted = facts(), KernelParameters.of_header("amd", HOST_DEFAULTS)
    assert host.otherwise(wanted) == []
    changed = wanted.changed(None, (("kvm_amd", "npt", "1"), ("kvm", "tdp_mmu", "force")))
    assert host.otherwise(changed) == ["the host has kvm_amd.npt=N, not 1"]


def test_a_host_without_address_sizes_is_said() -> None:
    with pytest.raises(InputError, match="address sizes"):
        _ = HostFacts().phys_bits
