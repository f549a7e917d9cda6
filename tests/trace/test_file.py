"""Recordings as files: whole, the same, and refused in one line when they are not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import parity
from mmulab.kvm.roles.design import Passthrough
from mmulab.kvm.validity import Validity
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.record import record
from mmulab.scenario.runner import Runner
from mmulab.trace.file import HEADER, open_recording, save
from mmulab.trace.recorder import Recorder
from mmulab.trace.recording import Info, Recording
from tests.trace.conftest import scenario


@pytest.fixture
def path(unsync: Recording, tmp_path: Path) -> Path:
    save(unsync, tmp_path / "a.mmr")
    return tmp_path / "a.mmr"


def test_opened_is_what_was_saved(unsync: Recording, path: Path) -> None:
    opened = open_recording(path)
    for log in ("ops", "outcomes", "events"):
        assert list(map(repr, getattr(opened, log))) == list(map(repr, getattr(unsync, log)))
    assert (opened.config, opened.info, opened.verdicts) == (unsync.config, unsync.info, unsync.verdicts)
    assert opened.info.seed == 3
    for number in range(0, len(unsync), 11):
        assert opened.visit(opened.moment(number)).digest() == unsync.visit(unsync.moment(number)).digest()


def test_same_recording_is_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save(open_recording(path), tmp_path / "b.mmr")
    assert (tmp_path / "b.mmr").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mmr", "b.mmr"]


def test_a_change_of_cpuid_and_the_marker_come_back(tmp_path: Path) -> None:
    """The guest's CPUID is state: it has its old value before the op and its new one after it."""
    marker = Validity("own", "a marker of a notebook's", "", (("root_role.invalid", 1),))
    built = ScenarioBuilder("np").op("cpuid maxphyaddr 24").op("nop").build()
    runner = Runner(built, config=machine_config(built, LINUX_6_1.with_(validity=marker)))
    recorder = Recorder(runner.machine, info=Info("", "", None, {}), interval=1)
    assert [result.outcome.result for result in runner.results()][1] == 0
    save(recorder.finish(), tmp_path / "a.mmr")
    opened = open_recording(tmp_path / "a.mmr")
    assert opened.config.kernel.validity == marker
    widths = [opened.visit(opened.moment(n)).machine.kvm.vcpus[0].cpu.maxphyaddr for n in range(len(opened))]
    assert widths[0] == 40
    assert widths[-1] == 36
    assert widths == sorted(widths, reverse=True)


def test_a_switch_of_nx_huge_pages_comes_back(tmp_path: Path) -> None:
    """The host's parameter is state too; whether the VM opted out of it is not."""
    builder = ScenarioBuilder("np", disable_nx_huge_pages=True)
    built = builder.op("rd s 5000").op("nxhuge 1").op("rd s 5000").build()
    runner = Runner(built)
    recorder = Recorder(runner.machine, info=Info("", "", None, {}), interval=1)
    assert len(list(runner.results())) == 5
    save(recorder.finish(), tmp_path / "a.mmr")
    opened = open_recording(tmp_path / "a.mmr")
    assert opened.config.disable_nx_huge_pages
    switched, opted_out = [], []
    for number in range(len(opened)):
        kvm = opened.visit(opened.moment(number)).machine.kvm
        switched.append(kvm.nx_huge_pages)
        opted_out.append(kvm.disable_nx_huge_pages)
    assert (switched[0], switched[-1]) == (False, True)
    assert switched == sorted(switched)
    assert all(opted_out)


def test_a_kernels_bugs_come_back(path: Path, tmp_path: Path) -> None:
    built = ScenarioBuilder("np").op("nop").build()
    save(record(built, kernel=LINUX_6_1.toggled(B7=True)), tmp_path / "b.mmr")
    assert open_recording(tmp_path / "b.mmr").config.kernel.bugs.names() == ("B7",)
    header = json.loads(zipfile.ZipFile(path).read(HEADER))
    header["config"]["kernel"]["bugs"] = ["B99"]
    with_header(path, config=header["config"])
    assert "bug 'B99': no switch" in refused(path)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        open_recording(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_file(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert refused(path) == "cut or damaged, or no archive; copy it again, or record it again"


def test_damaged_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    assert "copy it again, or record it again" in refused(path)


def test_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.mmr") == "no such file"


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write an archive again with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def with_header(path: Path, **values: Any) -> None:
    def change(members: dict[str, bytes]) -> None:
        members[HEADER] = json.dumps({**json.loads(members[HEADER]), **values}).encode()

    rewritten(path, change)


def test_another_version(path: Path) -> None:
    with_header(path, format=9, version="9.1")
    assert refused(path) == (
        "format 9 of mmulab 9.1, this mmulab reads format 6; record it again, or open it with that version"
    )


def test_missing_scenario(path: Path) -> None:
    rewritten(path, lambda members: members.pop("scenario.mmu"))
    assert refused(path) == "its scenario is missing from the file; copy it again, or record it again"


def test_missing_column(path: Path) -> None:
    rewritten(path, lambda members: members.pop("events/0/addr.npy"))
    assert refused(path) == "events/0/addr.npy is missing from the file; copy it again, or record it again"


def test_other_archive(path: Path) -> None:
    rewritten(path, lambda members: members.pop(HEADER))
    assert refused(path).startswith("not a recording: no recording.json")


def test_columns_that_do_not_fit(path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["ends.npy"] = members["checkpoint_ops.npy"]

    rewritten(path, change)
    assert "its columns do not fit together" in refused(path)


def test_unwritable(unsync: Recording, tmp_path: Path) -> None:
    target = tmp_path / "no" / "a.mmr"
    with pytest.raises(InputError, match="cannot be written"):
        save(unsync, target)
    assert list(tmp_path.iterdir()) == []


class Mine(Passthrough):
    """A design made in a notebook."""

    name = "mine"


last = parity._replace(name="last")


def test_design_of_the_readers_own(path: Path) -> None:
    recording = record(scenario("sh/basic-32"), kernel=LINUX_6_1.with_(design=Mine(), derivation=last))
    save(recording, path)
    assert "derivation 'last' is not one of mmulab's" in refused(path, designs={"mine": Mine()})
    with_design = refused(path, derivations={"last": last})
    assert with_design == (
        "design 'mine' is not one of mmulab's; give --design file.py:Class, "
        "or designs={'mine': ..} to open_recording"
    )
    opened = open_recording(path, designs={"mine": Mine()}, derivations={"last": last})
    assert opened.at(40).digest() == recording.at(40).digest()


def test_nameless_design_is_refused(unsync: Recording, tmp_path: Path) -> None:
    nameless = Mine()
    nameless.name = ""
    unsync_mine = Recording(
        replace(unsync.config, kernel=LINUX_6_1.with_(design=nameless)),
        *(getattr(unsync, name) for name in ("ops", "outcomes", "events", "ends", "checkpoints")),
        unsync.checkpoint_ops,
        unsync.info,
        unsync.verdicts,
    )
    with pytest.raises(ValueError, match="give them one"):
        save(unsync_mine, tmp_path / "b.mmr")
