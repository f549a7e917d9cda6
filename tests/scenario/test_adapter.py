"""What a scenario's header says reaches the machine, and what has no effect is known by name."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, MODES, QUIRKS

WITHOUT_EFFECT = {
    # Linux has them on for all, or they decide what no modelled op does.
    "vpid",
    "nested",
    "vgif",
    "sev",
    "unrestricted_guest",
    "force_emulation_prefix",
    # Refused by the runner where it matters.
    "enable_shadow_vmcs",
}
CPUID_WITHOUT_EFFECT = {"pse", "pae", "pge", "lm", "umip", "svm", "vmx"}
OF_A_VENDOR = {"npt": "amd", "ept": "intel"}


def configured(vendor: str = "amd", **changes: dict[str, int]) -> object:
    return machine_config(ScenarioBuilder("32", vendor=vendor, **changes).build())


@pytest.mark.parametrize("name", sorted(HOST_DEFAULTS))
def test_every_parameter_of_the_host_has_its_effect(name: str) -> None:
    """The other value gives another machine, unless the parameter is known to have none."""
    vendor = OF_A_VENDOR.get(name, "amd")
    value = HOST_DEFAULTS[name]
    other = {"virt_bits": 48, "phys_bits": 39, "cache_bits": 39}.get(name, 1 - value)
    changed = configured(vendor, host={name: other}) != configured(vendor)
    assert changed is (name not in WITHOUT_EFFECT)


@pytest.mark.parametrize("name", sorted(CPUID_DEFAULTS))
def test_every_feature_of_the_guests_processor_has_its_effect(name: str) -> None:
    value = CPUID_DEFAULTS[name]
    other = 39 if name == "maxphyaddr" else 1 - value
    changed = configured(cpu={name: other}) != configured()
    assert changed is (name not in CPUID_WITHOUT_EFFECT)


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_a_quirk_is_the_hosts(name: str) -> None:
    plain = machine_config(ScenarioBuilder("32").build())
    quirky = machine_config(ScenarioBuilder("32").quirk(name).build())
    assert not getattr(plain.host, name)
    assert getattr(quirky.host, name)


def test_two_dimensional_paging_is_each_vendors_own_parameter() -> None:
    for vendor, other in (("amd", "ept"), ("intel", "npt")):
        scenario = ScenarioBuilder("32", vendor=vendor, host={other: 1}).build()
        assert not machine_config(scenario).host.tdp
        assert machine_config(scenario).host.vendor == machine_config(scenario).cpu.vendor == vendor


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
