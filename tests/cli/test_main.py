"""The command line's entry: what is shown, where, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from mmulab import __version__
from mmulab.cli import main
from mmulab.cli.signals import Terminated
from mmulab.errors import InputError

if TYPE_CHECKING:
    from tests.conftest import CommandLine


def add(monkeypatch: pytest.MonkeyPatch, body: object) -> None:
    """Put a command ``try`` that calls `body` into the table."""

    @click.command()
    @click.option("--count", type=int)
    @click.pass_context
    def tried(ctx: click.Context, count: int | None) -> None:
        body(ctx)  # type: ignore[operator]

    monkeypatch.setattr(main, "_tried", tried, raising=False)
    monkeypatch.setitem(main.COMMANDS, "try", main.Entry("mmulab.cli.main:_tried", "Try."))


def raising(error: BaseException) -> object:
    def body(ctx: click.Context) -> None:
        raise error

    return body


def test_version(command: CommandLine) -> None:
    done = command.process("--version")
    assert (done.returncode, done.stdout) == (0, f"mmulab {__version__}\n")


def test_help_is_the_map_of_the_command_line(command: CommandLine) -> None:
    done = command.process("--help")
    assert done.returncode == 0
    listed = [
        line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line.strip()
    ]
    assert listed[: len(main.COMMANDS)] == list(main.COMMANDS)
    assert command().stdout == done.stdout


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_starts_and_has_help(name: str, command: CommandLine) -> None:
    done = command.process(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: mmulab {name}" in done.stdout


def test_unknown_command_is_one_line(command: CommandLine) -> None:
    assert "'nonsense'" in command.error("nonsense")


def test_wrong_option_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(monkeypatch, lambda ctx: None)
    assert main.run(["try", "--count", "many"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mmulab: Invalid value for '--count'")
    assert captured.err.count("\n") == 1


def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add(monkeypatch, raising(InputError("a.npz: record 3: cut short;\nfetch it again")))
    assert main.run(["try"]) == 2
    assert capsys.readouterr().err == "mmulab: a.npz: record 3: cut short; fetch it again\n"


def test_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add(monkeypatch, raising(KeyboardInterrupt()))
    assert main.run(["try"]) == 130
    assert capsys.readouterr().err == "mmulab: interrupted\n"


def test_command_chooses_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, lambda ctx: ctx.exit(1))
    assert main.run(["try"]) == 1


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main.run(["try"])


def test_reader_that_leaves_is_no_error() -> None:
    program = """
import click, sys
from mmulab.cli import main
from mmulab.cli.signals import Terminated

@click.command()
def endless():
    while True:
        click.echo("line " * 100)

main._tried = endless
main.COMMANDS["try"] = main.Entry("mmulab.cli.main:_tried", "Try.")
sys.argv = ["mmulab", "try"]
main.main()
"""
    # With a buffer, as users have it: what is left there at exit must not fail a second time.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True, env=buffered
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline().startswith("line")
        writer.stdout.close()
        said = writer.stderr.read()
    assert said == ""
    assert writer.returncode == 141


COMMANDS_THAT_PRINT = [
    "",
    "--help",
    "--version",
    "role --help",
    "report --notebook first_fault",
    "designs",
    "designs --json",
    "features --json",
    "role encode level=1",
    "cases la57-switch-tdp-4to5-l0-5",
    "cases la57-switch-tdp-4to5-l0-5 --json",
    "run la57-switch-tdp-4to5-l0-5",
    "run la57-switch-tdp-4to5-l0-5 --json",
    "compare --designs D0 --cases la57-switch-tdp-4to5-l0-5",
    "compare --designs D0 --cases la57-switch-tdp-4to5-l0-5 --json",
    "conform {data}/conformance/6.1.192/sh/mode-switch.jsonl.xz",
    "conform {data}/conformance/6.1.192/sh/mode-switch.jsonl.xz --json",
    "diff {data}/conformance/6.1.192/tdp0 {data}/conformance/6.12.117/tdp0",
    "diff {data}/conformance/6.1.192/tdp0 {data}/conformance/6.12.117/tdp0 --json",
    "replay {data}/stream/boot-686-nonpae.npz --limit 1100",
    "replay {data}/stream/boot-686-nonpae.npz --limit 1100 --json",
]


@pytest.mark.parametrize("line", COMMANDS_THAT_PRINT)
def test_full_disk_behind_standard_output_is_one_line(line: str, root: Path, tmp_path: Path) -> None:
    args = line.format(data=root / "data").split()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmulab.cli.main", *args],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "mmulab: standard output: cannot be written (No space left on device); make room there\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ("--help >&-", 2, "mmulab: standard output is closed; send it to a file or to /dev/null\n"),
        ("--help 1</dev/null", 2, "mmulab: standard output is closed; send it to a file or to /dev/null\n"),
        ("nonsense 2>&-", 2, ""),
        ("nonsense 2>/dev/full", 2, ""),
        ("step la57-switch-tdp-4to5-l0-5 <&- >/dev/null", 0, ""),
        ("--help <&- >/dev/null 2>&-", 0, ""),
    ],
)
def test_closed_streams(streams: str, code: int, said: str) -> None:
    line = f'"{sys.executable}" -m mmulab.cli.main {streams}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_sigterm_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(monkeypatch, raising(Terminated()))
    assert main.run(["try"]) == 143
    assert capsys.readouterr().err == "mmulab: terminated\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rum"], "no such command 'rum'; did you mean 'run'? 'mmulab --help' lists them"),
        (["zzz"], "no such command 'zzz'; 'mmulab --help' lists them"),
        (["role", "enc"], "no such command 'enc'; did you mean 'encode'? 'mmulab role --help' lists them"),
        (["spte", "deco"], "no such command 'deco'; did you mean 'decode'? 'mmulab spte --help' lists them"),
        (["run"], "Missing argument 'FILE'; see 'mmulab run --help'"),
        (["role", "decode"], "Missing argument 'WORD...'; see 'mmulab role decode --help'"),
    ],
)
def test_a_command_misspelt_or_cut_short_is_answered_with_the_mend(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(args) == 2
    assert capsys.readouterr() == ("", f"mmulab: {message}\n")
