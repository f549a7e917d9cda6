"""Many scenarios in few boots, with a host that stands in for QEMU; and, where there is one, with QEMU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest

from mmulab.conform.compare import Level
from mmulab.conform.diff import Run, diff_runs, model_run
from mmulab.conform.record import write_recording
from mmulab.conform.recording import read_lines, read_recording
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.lab.cases.table import find_cases, read_case, scenario_of
from mmulab.record import build, session
from mmulab.record.bochs import needed_files
from mmulab.record.cache import cache_folder
from mmulab.record.kernel_files import PACKAGES, KernelFiles, cached_package, from_deb
from mmulab.record.link import Kind, Record
from mmulab.record.qemu import QEMU
from mmulab.record.session import Recorded, record
from mmulab.record.take import Take
from mmulab.record.work import Work, of_scenario, read_recorded
from mmulab.scenario.text import parse_scenario, read_scenario

KERNEL = KernelFiles(Path("bzImage"), {}, frozenset())


class FakeHost:
    """Runs what it is sent, except for scenarios whose ops say what is to go wrong."""

    boots: list[str] = []  # noqa: RUF012 -- cleared by each test

    def __init__(self, kernel: KernelFiles, parameters: Any, guest_bytes: int) -> None:
        self.facts = SimpleNamespace(
            texts={"release": "6.1"}, supported={"pku": 0}, phys_bits=40, otherwise=lambda _: []
        )
        self.link = SimpleNamespace(send=self._send)
        self.corrected = QEMU.corrected
        FakeHost.boots.append(str(parameters))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def wait_ready(self, seconds: float) -> float:
        return 1.0

    def _send(self, job: str) -> None:
        self.job = job

    def collect(self, take: Take, seconds: float) -> bool:
        if "\n0 nop" in self.job:
            take.add(Record(Kind.DONE, b""))
        if "\n0 cr3 1" in self.job:
            take.add(Record(Kind.ERROR, b"KVM_CREATE_VM: no"))
        return "\n0 cr3 2" not in self.job

    def new_words(self) -> list[str]:
        return []

    def last_words(self) -> list[str]:
        return ["BUG: test"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHost.boots.clear()
    monkeypatch.setattr(session, "Host", FakeHost)
    monkeypatch.setattr(session, "recorded_lines", lambda *_: ["{}"])


def works(*ops: str) -> list[Work]:
    texts = (f"mmulab-scenario 1\nmode np\nops\n{op}\nend\n" for op in ops)
    return [of_scenario(f"w{i}", parse_scenario(text)) for i, text in enumerate(texts)]


def run(all_works: list[Work], seconds: float | None = None) -> list[Recorded]:
    hosts = [work.parameters() for work in all_works]
    return list(record(all_works, KERNEL, hosts, lambda _: None, scenario_seconds=seconds))


def test_many_scenarios_boot_once(fake: None) -> None:
    found = run(works("nop", "nop", "nop"))
    assert [recorded.work.name for recorded in found] == ["w0", "w1", "w2"]
    assert len(FakeHost.boots) == 1


def test_scenarios_of_another_host_have_a_boot_of_their_own(fake: None) -> None:
    plain = works("nop", "nop", "nop")
    header = plain[1].scenario.header
    npt = replace(plain[1].scenario, header=replace(header, host={**header.host, "npt": 1}))
    plain[1] = replace(plain[1], scenario=npt)
    assert [recorded.work.name for recorded in run(plain)] == ["w0", "w2", "w1"]
    assert len(FakeHost.boots) == 2


def test_after_a_death_the_others_run_in_a_fresh_boot(fake: None) -> None:
    found = run(works("nop", "cr3 0", "nop"))
    assert [recorded.words for recorded in found] == [[], ["BUG: test"], []]
    assert len(FakeHost.boots) == 2


def test_what_the_vmm_cannot_run_has_no_recording(fake: None) -> None:
    found = run(works("cr3 1", "nop"))
    assert (found[0].lines, found[0].error) == ([], "KVM_CREATE_VM: no")
    assert found[1].lines


def test_a_scenario_that_takes_too_long_is_said(fake: None) -> None:
    found = run(works("cr3 2", "nop"), seconds=3)
    assert found[0].words == ["no answer within 3 s"]
    assert found[1].lines


def real_package(release: str, *tools: str) -> Path:
    """Return the package of a kernel that was downloaded before; no test downloads."""
    for tool in (*(tools or ("qemu-system-x86_64",)), "gcc", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"recording on {release}: there is no {tool}")
    found = cached_package(PACKAGES[release], release)
    if found is None:
        cache = cache_folder("packages")
        pytest.skip(
            f"recording on {release}: {PACKAGES[release]} of it is not in {cache}; apt-get download it there"
        )
    return found


def real_kernel(release: str, *tools: str) -> KernelFiles:
    """Return the kernel of such a package."""
    return from_deb(str(real_package(release, *tools)))


ANEW = {
    "6.1.192": ("age/age-thp-np", "age/collapse-64", "dirtyring/dirtyring-full-64"),
    "6.12.117": ("age/collapse-64", "dirtyring/dirtyring-full-64"),
}
"""Of the further recordings: ops of the host's and the VMM's that the first ones lack."""


def without_kernel(lines: list[str]) -> Iterator[Any]:
    """Yield the objects of a recording, its header without the kernel's build, and all of CPUID that is 0."""
    header = json.loads(lines[0])
    del header["host"]["kernel"]
    header["cpuid"] = {key: value for key, value in header["cpuid"].items() if value}
    yield header
    yield from map(json.loads, lines[1:])


@pytest.mark.slow
@pytest.mark.parametrize("release", PACKAGES)
def test_scenarios_recorded_anew_equal_the_recordings(release: str, root: Path) -> None:
    kernel = real_kernel(release)
    paths = [
        root / f"data/conformance/{release}/{name}.jsonl.xz"
        for name in ("sh/mmio-pae", "nested48/nested-64-l2-32")
    ]
    paths += [root / f"data/conformance-more/{release}/{name}.jsonl.xz" for name in ANEW[release]]
    all_works = [read_recorded(path) for path in paths]
    found = list(record(all_works, kernel, [work.parameters() for work in all_works], print))
    recorded = {id(one.work): one.lines for one in found}  # those of one host come together
    for path, work in zip(paths, all_works, strict=True):
        assert list(without_kernel(recorded[id(work)])) == list(without_kernel(read_lines(path)))


@pytest.mark.slow
def test_what_a_kernel_cannot_do_is_said_and_not_recorded(root: Path) -> None:
    """MADV_PAGEOUT of 6.12 takes pages without asking whether they were used."""
    kernel = real_kernel("6.12.117")
    aged = read_recorded(root / "data/conformance-more/6.1.192/age/age-64.jsonl.xz")
    (refused,) = record([aged], kernel, [aged.parameters()], print)
    assert refused.error == "op age: MADV_PAGEOUT of this kernel ages no page; a kernel up to 6.8 is needed"
    assert refused.lines == []


def killer(work: Work) -> Work:
    """Return a scenario that crashes the kernel between two ops of this one."""
    return replace(work, ops=(work.ops[0], (1, "panic"), (2, work.ops[1][1])), n_ops=3)


@pytest.mark.slow
def test_nested_cases_run_on_a_real_kernel_as_in_the_model(root: Path, tmp_path: Path) -> None:
    names = ("npt-32-l2-64-l0-5", "nonpt-tdp-64-l2-pae-l0-5", "la57-switch-npt-4to5-l0-5")
    all_works = [of_scenario(case.name, scenario_of(read_case(case))) for case in find_cases(names)]
    hosts = [work.parameters() for work in all_works]
    for recorded in record(all_works, real_kernel("6.1.192"), hosts, print):
        path = tmp_path / f"{recorded.work.name}.jsonl"
        write_recording(path, recorded.lines)
        found = read_recording(path)
        assert {"l2", "vmexit"} <= {op.outcome["out"] for op in found.ops}
        count, differ = diff_runs(Run.of(found), model_run(found, LINUX_6_1), Level.FULL)
        assert count == len(found.ops)
        assert list(differ) == []


@pytest.mark.slow
def test_a_panic_is_a_result_and_the_next_scenario_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VMM of this test has an op more, which crashes the kernel by sysrq."""
    kernel = real_kernel("6.1.192")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DTEST_PANIC"))
    first = of_scenario("first", read_scenario(root / "tests/scenario/examples/first_fault.mmu"))
    all_works = [killer(first), first]
    died, whole = record(all_works, kernel, [work.parameters() for work in all_works], print)
    assert any("sysrq" in line.lower() for line in died.words)
    assert any(line.startswith("Kernel panic") for line in died.words)
    records = [json.loads(line) for line in died.lines]
    assert [r["op"] for r in records[1:-1]] == ["init", "rd u 4 40000000", "panic"]
    assert records[3]["out"] == {"out": "host_died", "words": died.words}
    assert records[2] == json.loads(whole.lines[2])  # events of what was finished are kept
    assert json.loads(whole.lines[-2])["op"] == "teardown"


@pytest.mark.slow
def test_intel_scenarios_recorded_anew_equal_the_recordings(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two boots of Bochs take minutes, so that a panic is survived is shown here too."""
    kernel = real_kernel("6.1.192", "bochs", "xorriso")
    try:
        needed_files()
    except InputError as error:
        pytest.skip(f"recording on an Intel host: {error}")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DTEST_PANIC"))
    names = ("intel-sh/basic-64", "nested-noept-shadow/noept-64-l2-64")
    paths = [root / f"data/conformance/6.1.192/{name}.jsonl.xz" for name in names]
    plain, nested = (read_recorded(path) for path in paths)
    all_works = [plain, killer(plain), nested]
    whole, died, after = record(all_works, kernel, [work.parameters() for work in all_works], print)
    for path, recorded in zip(paths, (whole, after), strict=True):
        assert list(without_kernel(recorded.lines)) == list(without_kernel(read_lines(path)))
    assert any(line.startswith("Kernel panic") for line in died.words)
    assert json.loads(died.lines[3])["out"]["out"] == "host_died"
    assert died.lines[2] == whole.lines[2]
