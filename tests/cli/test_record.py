"""``mmulab record``: what it refuses, and that nothing is left of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.record.own_host import NEEDS
from tests.conftest import CommandLine

EXAMPLE = "tests/scenario/examples/first_fault.mmu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which kernel: give --deb"),
        (["--deb", "x.deb", "--kernel", "bzImage"], "which kernel: give --deb"),
        (["--deb", "x.deb"], "x.deb: no such file"),
        (["--deb", "x.deb", "--modules", "m"], "--modules m: goes with --kernel"),
        (["--kernel", "ghost"], "ghost: no such file"),
        (["--host", "--deb", "x.deb"], "--host: this machine is taken as it is; leave out --deb"),
        (["--host", "--kvm", "npt=1"], "--host: this machine is taken as it is; leave out --kvm"),
        (["--vendor", "intel", "--deb", "x.deb"], "none of the 1 scenarios can run on an Intel host"),
        (["--deb", "x.deb", "--kvm", "ept=0"], "--kvm ept: of kvm_intel, which the hosts"),
        (["--deb", "x.deb", "--kvm", "ghost=1"], "--kvm 'ghost=1': known are tdp_mmu"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    command: CommandLine, root: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in command.error("record", root / EXAMPLE, "--out", "out", *options)
    assert not (tmp_path / "out").exists()


def test_what_no_host_can_run_is_refused_unless_it_is_left_out(
    command: CommandLine, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "vmx.mmu").write_text("mmulab-scenario 1\nmode np\nops\nvmxon 1000\nend\n")
    said = command.error("record", "vmx.mmu", "--out", "out", "--deb", "x.deb")
    assert "--vendor amd leaves out what cannot run, 1 of 1" in said
    path = root / "data/conformance/6.1.192/ept0"
    said = command.error("record", path, "--out", "out", "--deb", "x.deb", "--vendor", "amd")
    assert "none of the 16 scenarios can run on an AMD host" in said


def test_an_intel_host_with_5_levels_is_refused_by_name(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "five.mmu").write_text("mmulab-scenario 1\nhost intel\nmode np\nops\nnop\nend\n")
    said = command.error("record", "five.mmu", "--out", "out", "--deb", "x.deb")
    assert "five: an Intel host runs in Bochs, which has 4-level paging only; --levels 4" in said
    said = command.error("record", "five.mmu", "--out", "out", "--deb", "x.deb", "--levels", "4")
    assert "x.deb: no such file" in said


def test_two_scenarios_of_one_name_are_refused(command: CommandLine, root: Path, tmp_path: Path) -> None:
    (tmp_path / "bzImage").touch()
    said = command.error("record", root / EXAMPLE, root / EXAMPLE, "--out", "out", "--kernel", "bzImage")
    assert "both would be first_fault.jsonl" in said
    assert not (tmp_path / "out").exists()


def test_a_boot_is_no_scenario(command: CommandLine) -> None:
    said = command.error("record", "stream/boot-686-nonpae", "--out", "out", "--kernel", "bzImage")
    assert "a boot, which is no scenario" in said


def test_a_machine_that_is_no_host_is_told_all_that_it_lacks(
    command: CommandLine, root: Path, tmp_path: Path
) -> None:
    checks = json.loads(command("doctor", "record", "--json").stdout)["groups"]["record"]["checks"]
    own = [check for check in checks if check["name"].startswith("--host ")]
    assert len(own) == len(NEEDS)
    lacking = [f"mmulab: {check['name']}: {check['says']}" for check in own if not check["ok"]]
    if not lacking:
        pytest.skip("record --host would run: this machine has all that it needs")
    done = command("record", "--host", root / EXAMPLE, "--out", "out")
    assert (done.returncode, done.stderr.splitlines()) == (2, lacking)
    assert not (tmp_path / "out").exists()


def test_help_says_what_own_kvm_risks(command: CommandLine) -> None:
    said = " ".join(command("record", "--help").stdout.split())
    assert "a scenario that kills its host kills THIS MACHINE" in said
