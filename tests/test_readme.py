"""What the README tells a stranger to type does what it says: the first session, and every command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
from distributed.cli import dask_scheduler, dask_worker

from mmulab.cli.main import COMMANDS, run
from tests.conftest import CommandLine
from tests.dask_cluster import loopback

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
SWEEPS = TEXT[TEXT.index("\n## Sweeps\n") : TEXT.index("\n## A scenario by hand\n")]
DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
PROGRAMS = {*"mmulab make papermill dask pip python3 sudo conda trace-cmd eval . .ci/run".split()}  # noqa: SIM905

SMALLER = {
    "mmulab conform data/conformance data/conformance-more --level full": (
        "mmulab conform data/conformance/6.1.192/tdp0 --level full"
    ),
    "mmulab conform data/conformance/6.1.192/sh --level full --explain": (
        "mmulab conform data/conformance/6.1.192/tdp0 --level full --explain"
    ),
    "mmulab diff data/conformance/6.1.192/sh data/conformance/6.12.117/sh --causes": (
        "mmulab diff data/conformance/6.1.192/tdp0 data/conformance/6.12.117/tdp0 --causes"
    ),
    "mmulab report --notebook real_boot -p source boot-amd64-4l -p limit 4000000 --out out/64-bit": (
        "mmulab report --notebook real_boot -p source boot-amd64-4l -p limit 20000 --out out/64-bit"
    ),
    "mmulab check --bug B13 --budget 60 --out out": (
        "mmulab check --bug B13 --budget 600 --scope upper-paths-64 --out out"
    ),
    "mmulab cases": "mmulab cases 'mixed-*'",
    "mmulab compare --designs D0,D4,glevel --cases all": (
        "mmulab compare --designs D0,D4,glevel --cases 'la57-*'"
    ),
    "mmulab compare --syncs unsync_children,write_protect,oos_2008 --cases 'stream/*'": (
        "mmulab compare --syncs unsync_children,write_protect,oos_2008 --cases 'stream/*' --limit 2000"
    ),
    "mmulab compare --kernels 6.1,6.12 --cases 'conformance/6.1.192/*,stream/*' --jobs 2": (
        "mmulab compare --kernels 6.1,6.12 --cases 'conformance/6.1.192/sh/basic-*' --jobs 2"
    ),
}
"""Commands that take minutes, each with the same one on less work, which is run instead.

The search has more time, as a busy machine may need it, and ends as soon as it has found the bug.
"""

SLOW = {
    "mmulab report --notebook first_fault -p derivation copied --out out/copied",
    "mmulab run workload/text-patching/64/shadow --events",
    "mmulab doctor",
    "mmulab doctor record",
    *SMALLER,
}

ELSEWHERE = {
    "mmulab sweep": "test_the_sweep_goes_as_it_says, and with --scheduler the test after it",
    "mmulab results": "test_the_sweep_goes_as_it_says",
    "mmulab record": "tests/record, on kernels that QEMU and Bochs boot; here its options are read",
    "mmulab diff A B": "compares what 'mmulab record' wrote; here its options are read",
    "dask": "tests/dask_cluster.py starts both; here their options are read",
    "papermill": "tests/notebooks; here the notebook is there",
    "python3 -m venv": "test_a_stranger_gets_to_a_role",
    ". .venv/bin/activate": "test_a_stranger_gets_to_a_role",
    "pip install": "test_a_stranger_gets_to_a_role",
    "make": "each rule would install or run for minutes: make says what it would do",
    ".ci/run": "runs this test",
    "trace-cmd": "tests/cli/test_role.py gives lines of a trace to 'mmulab role decode -'",
    "eval": "tests/cli/test_complete.py",
}
"""Commands, by how they begin, that another test runs, or that are not run whole, and why."""

NEVER = {
    "sudo mmulab record --host": "takes this machine's own KVM; tests/record runs it in a machine in QEMU",
    "conda env create -f environment.yml": "needs conda and its channel",
}


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text: str) -> list[str]:
    """Return the commands of the shell blocks, without comments, then those that stand in the text."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    inside = [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    named = [span for span in spans if span.split()[0] in PROGRAMS and (" " in span or span == ".ci/run")]
    return list(dict.fromkeys([*inside, *named]))


def elsewhere(command: str) -> str | None:
    """Return the beginning by which a command stands among :data:`ELSEWHERE`."""
    return next((start for start in ELSEWHERE if f"{command} ".startswith(f"{start} ")), None)


def as_written(command: str) -> bool:
    return not (elsewhere(command) or command in NEVER)


EVERY = commands(TEXT)
HERE = [command for command in EVERY if as_written(command)]


def test_each_command_is_run_or_has_its_reason() -> None:
    assert len(HERE) > 25
    assert all(command.startswith("mmulab ") for command in HERE)
    assert {*SMALLER, *SLOW, *NEVER} <= set(EVERY)
    assert {found for command in EVERY if (found := elsewhere(command))} == set(ELSEWHERE)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the checkout, which commands may write into, with the README's own files."""
    for name in ("data", "notebooks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (design,) = blocks(TEXT, "python")
    (tmp_path / "no_wp.py").write_text(design)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in HERE]
)
def test_a_command_does_what_it_does_without_a_complaint(
    command: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(SMALLER.get(command, command))
    assert program == "mmulab"
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - 'step' ends where its input does
    code = run(words)
    out, err = capsys.readouterr()
    if words[0] not in ("doctor", "diff"):  # what they find is their exit code
        assert (code, err) == (0, ""), command
    assert code < 2
    assert len(out.splitlines()) > 0, command


@pytest.mark.parametrize("command", [one for one in EVERY if elsewhere(one)])
def test_a_command_that_is_run_elsewhere_can_be_read(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "mmulab":
        module, name = COMMANDS[words[0]].target.split(":")
        placed = words if len(words) > 1 or words[0] != "record" else [*words, "FILE", "--out", "OUT"]
        getattr(import_module(module), name).make_context(placed[0], placed[1:])
    elif program == "dask":
        DASK[words[0]].make_context(words[0], words[1:])
    elif program == "make":
        dry = ["make", "--dry-run", "--assume-old=.venv/.installed", *words]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "papermill":
        assert (ROOT / words[0]).is_file()
    else:
        assert program in {"python3", ".", "pip", ".ci/run", "trace-cmd", "eval"}


def test_the_picture_is_what_its_command_draws(checkout: Path) -> None:
    (shown,) = re.findall(r"!\[[^]]+\]\((\S+\.svg)\)", TEXT)
    (command,) = [one for one in EVERY if "--picture" in one]
    assert run(shlex.split(command)[1:]) == 0
    assert (checkout / "sharing.svg").read_text() == (ROOT / shown).read_text()


def test_a_stranger_gets_to_a_role(tmp_path: Path) -> None:
    """The README's first block, then Python's first lines, in an empty folder; at most ten lines together.

    What 'pip install -e .' would fetch is there already, so the libraries and the checkout are put on the
    new environment's path as pip does it; pip itself runs in 'make setup'.
    """
    install = [line.partition("#")[0].rstrip() for line in blocks(TEXT, "sh")[0].splitlines()]
    (session,) = blocks(TEXT, "pycon")
    typed, _, rest = session.partition(".pages()\n")
    lines = [line.removeprefix(">>> ") for line in f"{typed}.pages()".splitlines()]
    assert len(install) + len(["python"]) + len(lines) <= 10
    assert install.pop() == "pip install -e ."
    assert install[0].split()[0] == "python3"
    environment = f"{sys.executable} {install[0].removeprefix('python3 ')} --without-pip"
    site = sysconfig.get_path("purelib", vars={"base": ".venv"})
    path = f"printf '%s\\n' {ROOT} {sysconfig.get_path('purelib')} > {site}/checkout.pth"
    python = ["python - <<'END'", *lines[:-1], f"print({lines[-1]})", "END"]
    program = "\n".join([environment, *install[1:], path, *python])
    done = subprocess.run(
        ["bash", "-ec", program],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == rest[: rest.index(">>>")]


def test_the_sweep_goes_as_it_says(command: CommandLine, tmp_path: Path) -> None:
    (file,) = blocks(SWEEPS, "yaml")
    (tmp_path / "la57.yaml").write_text(file)
    assert len(file.splitlines()) <= 10
    inside = [shlex.split(one) for one in commands(SWEEPS)]
    near = [words[1:] for words in inside if words[0] == "mmulab" and "--scheduler" not in words]
    done = [command(*words) for words in near]
    assert [one.returncode for one in done] == [0] * len(near)
    dry, first, verified, results = (one.stdout for one in done)
    assert dry == "".join(f"design={name}: missing\n" for name in ("D0", "D1", "D4"))
    assert first == "la57: 3 of 3 runs done, 0 failed\nout/sweeps/la57/index.html\n"
    assert verified == "verify: 3 of 3 runs equal\n"
    assert results in blocks(SWEEPS, "")
    assert "3 as before" in command(*near[1]).stdout


def test_the_sweep_goes_on_a_scheduler(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "la57.yaml").write_text(blocks(SWEEPS, "yaml")[0])
    (far,) = [one for one in commands(SWEEPS) if "--scheduler tcp" in one]
    with loopback(tmp_path / "workers", 1) as found:
        done = command(*(word.replace("tcp://HOST:8786", found.address) for word in shlex.split(far)[1:]))
    assert (done.returncode, done.stdout) == (0, "la57: 3 of 3 runs done, 0 failed\nout/far/index.html\n")


def test_each_ready_sweep_is_named() -> None:
    ready = sorted(path.name for path in (ROOT / "notebooks/sweeps").glob("*.yaml"))
    assert sorted(re.findall(r"`(\w+\.yaml)`", SWEEPS)) == ready
