"""What the README shows of a scenario is what the program prints."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from mmulab.cli.compare import compare
from mmulab.cli.run import run_scenario

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "examples" / "first_fault.mmu"


def blocks() -> list[str]:
    """Return the README's code blocks that name no language."""
    parts = (ROOT / "README.md").read_text().split("```")
    return [part.lstrip("\n") for part in parts[1::2] if part.startswith("\n")]


def test_readme_shows_the_example_as_it_is() -> None:
    assert EXAMPLE.read_text() in blocks()


def test_readme_shows_what_becomes_of_its_design(tmp_path: Path) -> None:
    parts = (ROOT / "README.md").read_text().split("```")
    (design,) = [part.removeprefix("python\n") for part in parts[1::2] if part.startswith("python\n")]
    source = tmp_path / "no_wp.py"
    source.write_text(design)
    arguments = ["--designs", f"D4,{source}:NoCr0Wp", "--cases", "mixed-wp-*"]
    printed = CliRunner().invoke(compare, arguments).output
    shown = next(block for block in blocks() if block.startswith("X no_cr0_wp"))
    assert shown in printed


def test_readme_shows_what_the_example_prints() -> None:
    printed = CliRunner().invoke(run_scenario, [str(EXAMPLE), "--events"]).output
    shown = next(block for block in blocks() if block.lstrip().startswith("1 wr u 4"))
    assert shown in printed
