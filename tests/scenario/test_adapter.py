"""What a scenario's header says reaches the machine, and what has no effect is known by name."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.machine.config import MachineConfig
from mmulab.scenario.adapter import machine_config, parse_host
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.check import NEEDED, OF_VENDOR, VIRTUALIZATION
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, MODES, QUIRKS

WITHOUT_EFFECT = {
    # Linux has them on for all, or they decide what no modelled op does.
    "vpid",
    "vgif",
    "unrestricted_guest",
    "sev",
    "force_emulation_prefix",
    # Refused by the runner where it matters.
    "enable_shadow_vmcs",
}


def configured(vendor: str = "amd", mode: str = "32", **changes: dict[str, int]) -> MachineConfig:
    return machine_config(ScenarioBuilder(mode, vendor=vendor, **changes).build())


@pytest.mark.parametrize("name", sorted(HOST_DEFAULTS))
def test_every_parameter_of_the_host_has_its_effect(name: str) -> None:
    """The other value gives another machine, unless the parameter is known to have none."""
    vendor = OF_VENDOR.get(name, "amd")
    value = HOST_DEFAULTS[name]
    other = {"virt_bits": 48, "phys_bits": 39, "cache_bits": 39}.get(name, 1 - value)
    base = dict.fromkeys(NEEDED.get(name, ()), 1)
    changed = configured(vendor, host={**base, name: other}) != configured(vendor, host=base)
    assert changed is (name not in WITHOUT_EFFECT)


@pytest.mark.parametrize("name", sorted(CPUID_DEFAULTS))
def test_every_feature_of_the_guests_processor_has_its_effect(name: str) -> None:
    value = CPUID_DEFAULTS[name]
    other = 39 if name == "maxphyaddr" else 1 - value
    vendor = VIRTUALIZATION.get(name, "amd")
    assert configured(vendor, mode="np", cpu={name: other}) != configured(vendor, mode="np")


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_a_quirk_is_the_hosts(name: str) -> None:
    plain = machine_config(ScenarioBuilder("32").build())
    quirky = machine_config(ScenarioBuilder("32").quirk(name).build())
    assert not getattr(plain.host, name)
    assert getattr(quirky.host, name)


def test_two_dimensional_paging_is_each_vendors_own_parameter() -> None:
    for vendor, own in (("amd", "npt"), ("intel", "ept")):
        for value in (0, 1):
            config = machine_config(ScenarioBuilder("32", vendor=vendor, host={own: value}).build())
            assert config.host.tdp is bool(value)
            assert config.host.vendor == config.cpu.vendor == vendor


def test_there_are_as_many_vcpus_as_the_ops_name() -> None:
    builder = ScenarioBuilder("32")
    assert machine_config(builder.build()).vcpus == 1
    assert machine_config(builder.op("@2 nop").op("nop").build()).vcpus == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_32_bit_host_runs_no_64_bit_guest(mode: str) -> None:
    scenario = ScenarioBuilder(mode, host={"x86_64": 0}, source="here").build()
    if mode in ("64", "57"):
        with pytest.raises(InputError, match="here: a host with x86_64=0 runs no 64-bit guest"):
            machine_config(scenario)
    else:
        assert not machine_config(scenario).host.x86_64


def test_a_host_by_itself_is_that_of_a_scenario() -> None:
    assert parse_host("amd") == configured().host
    found = parse_host("  intel ept=1\teptad=0 phys_bits=27 ")
    assert found == configured("intel", host={"ept": 1, "eptad": 0, "phys_bits": 39}).host
    assert (found.vendor, found.tdp, found.eptad, found.phys_bits) == ("intel", True, False, 39)
    for text, why in (("amd pml=1", "a matter of intel"), ("intel pml=1", "pml needs ept=1"), ("", "VENDOR")):
        with pytest.raises(InputError, match=f"^host '{text}': .*{why}"):
            parse_host(text)
