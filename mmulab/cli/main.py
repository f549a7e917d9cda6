"""The entry of the command line: ``mmulab COMMAND ...``.

A command is a click command in a module of its own, imported only when it is
called; its row in :data:`COMMANDS` is all that ``mmulab --help`` reads. What a
command may raise, and what the user then sees, is decided here once:

=====================  ============================================  =========
raised                 shown                                         exit code
=====================  ============================================  =========
``InputError``         one line on stderr                            2
``click`` usage error  one line on stderr                            2
a full or broken disk  one line on stderr                            2
``KeyboardInterrupt``  one line on stderr                            130
``Terminated``         one line on stderr                            143
``BrokenPipeError``    nothing: the reader has seen enough           141
``ctx.exit(n)``        nothing                                       n
anything else          a traceback, because it is a bug              1
=====================  ============================================  =========

What a command writes to a file says so itself where the disk is full; what is
left here is standard output.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem, shell_complete

from mmulab import __version__, files, limits
from mmulab.cli import signals
from mmulab.cli.group import Group
from mmulab.cli.progress import working
from mmulab.errors import InputError, quoted


class Entry(NamedTuple):
    """Where a command lives (``module:attribute``) and its line in ``mmulab --help``."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "report": Entry("mmulab.cli.report:report", "Run the notebooks and export each to an offline page."),
    "sweep": Entry("mmulab.cli.sweep:sweep", "Run an experiment file, resume it, or repeat and compare."),
    "results": Entry("mmulab.cli.results:results", "Ask the results of a report or a sweep in SQL."),
    "run": Entry("mmulab.cli.run:run_scenario", "Run a scenario and print each op with its events."),
    "step": Entry("mmulab.cli.step:step", "Step through a run, event by event, in a terminal or on a page."),
    "conform": Entry("mmulab.cli.conform:conform", "Compare the model with recordings of real kernels."),
    "diff": Entry("mmulab.cli.diff:diff", "Compare two sets of recordings: differences by kind."),
    "record": Entry("mmulab.cli.record:record_scenarios", "Record scenarios on a real kernel, emulated."),
    "doctor": Entry("mmulab.cli.doctor:doctor", "Say what is installed, what is missing, and what to do."),
    "translate": Entry("mmulab.cli.translate:translate", "Walk snapshots of real page tables and compare."),
    "replay": Entry("mmulab.cli.replay:replay", "Replay a recorded boot and compare every translation."),
    "bench": Entry("mmulab.cli.bench:bench", "Measure translations a second against unicorn."),
    "cases": Entry("mmulab.cli.cases:cases", "Run the table of shadow, direct and nested cases."),
    "compare": Entry("mmulab.cli.compare:compare", "Compare role designs on cases, recordings and boots."),
    "check": Entry("mmulab.cli.check:check", "Search for the shortest sequence that breaks a kernel."),
    "designs": Entry("mmulab.cli.designs:designs", "Show the role designs and child-role derivations."),
    "kernels": Entry("mmulab.cli.kernels:kernels", "Show the kernels and in which behaviours they differ."),
    "bugs": Entry("mmulab.cli.bugs:bugs", "Show the historical bugs of KVM's MMU and their switches."),
    "affected": Entry("mmulab.cli.bugs:affected", "Show which of these bugs a release of Linux has."),
    "role": Entry("mmulab.cli.role:role", "Decode and encode role words of any kernel since 2.6.28."),
    "trace": Entry(
        "mmulab.cli.trace:trace", "Read a real kernel's trace: what is in it, and its statistics."
    ),
    "spte": Entry("mmulab.cli.spte:spte", "Decode shadow entries as a kernel and a host lay them out."),
    "pferr": Entry(
        "mmulab.cli.pferr:pferr", "Say what a page fault's error code means, EPT's and NPT's too."
    ),
    "features": Entry("mmulab.cli.features:features", "Show the features of KVM's MMU, with evidence."),
    "assertions": Entry("mmulab.cli.assertions:assertions", "Show the kernel's assertions."),
    "doc": Entry("mmulab.cli.doc:doc", "Print a page of the manual."),
    "help": Entry("mmulab.cli.doc:doc", "The same: 'mmulab help scenario' prints the scenario language."),
    "glossary": Entry("mmulab.cli.doc:glossary", "Explain a word of KVM's MMU or of this program."),
}
"""Every command, in the order in which ``mmulab --help`` lists them."""

COMPLETE = "_MMULAB_COMPLETE"
"""The variable by which a shell asks for its completion, as ``bash_source`` or ``bash_complete``."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""
TERMINATED = 143
"""Exit code after SIGTERM: 128 + SIGTERM."""
BROKEN_PIPE = 141
"""Exit code when the reader of stdout went away: 128 + SIGPIPE."""


class LazyGroup(Group):
    """A group that imports a command only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command `cmd_name`; None if the table has no such row."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        # An import that is cut off fails in ways of its own.
        with signals.held(), working(f"mmulab {cmd_name}"):
            command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{entry.target} is no click command"
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table alone, and an option."""
        named = [(name, entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=text) for name, text in named), *options]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the map of the command line from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'mmulab COMMAND --help' explains a command. An error is one line, with what to do; exit code 2.",
)
@click.version_option(__version__, prog_name="mmulab", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """KVM's shadow page tables on a laptop: run them, watch them, compare them with recorded kernels."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(args: Sequence[str], *, signalled: bool = False) -> int:
    """Run the command line `args` (without the program's name) and return the exit code.

    With `signalled`, Ctrl-C and SIGTERM raise in this process from now on, and either is said from the first.
    """
    try:
        if signalled:
            signals.install()
        return _invoke(args)
    except InputError as error:
        return _complain(str(error), 2)
    except click.UsageError as error:
        return _complain(_usage(error), 2)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except signals.Terminated:
        return _complain("terminated", TERMINATED)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _silence(1)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in files.DISK_ERRORS:
            raise
        _silence(1)
        why = f"cannot be written ({files.reason(error)}); {files.remedy(error, 'file')}"
        return _complain(f"standard output: {why}", 2)


def _invoke(args: Sequence[str]) -> int:
    code = 0
    try:
        with cli.make_context("mmulab", list(args)) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    sys.stdout.flush()
    return code


def _usage(error: click.UsageError) -> str:
    """Return what is wrong with the words of a command, and where to read how they go."""
    message = error.format_message()
    if error.ctx is None or "--help'" in message:
        return message
    return f"{message.rstrip('.')}; see '{error.ctx.command_path} --help'"


def _complain(message: str, code: int) -> int:
    """Print a message in one line, without control characters, and return `code`."""
    line = quoted(" ".join(message.split()), limits.MESSAGE)
    try:
        print("mmulab:", line, file=sys.stderr, flush=True)
    except OSError:  # the exit code still says it
        _silence(2)
    return code


def _silence(descriptor: int) -> None:
    """Let a stream that cannot be written lead nowhere: the interpreter flushes it once more at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _check_streams() -> None:
    """See to it that there are three standard streams, so that no file comes to stand for one.

    Raises
    ------
    InputError
        Standard output is closed or cannot be written.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115 - open as long as the process
    if sys.stdout is None or fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise InputError("standard output is closed; send it to a file or to /dev/null")


def main() -> None:
    """Run the command line of this process and leave it with the exit code."""
    try:
        _check_streams()
    except InputError as error:
        sys.exit(_complain(str(error), 2))
    asked = os.environ.get(COMPLETE)
    if asked:
        sys.exit(shell_complete(cli, {}, "mmulab", COMPLETE, asked))
    try:
        code = run(sys.argv[1:], signalled=True)
        signals.ignore()
    except KeyboardInterrupt as late:  # it came while the last line was said
        signals.ignore()
        code = TERMINATED if isinstance(late, signals.Terminated) else INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
