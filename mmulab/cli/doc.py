"""``mmulab doc``, ``help`` and ``glossary``: the manual, which lies in ``mmulab/doc`` as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from mmulab.errors import InputError, quoted

PAGES = ("index", "question", "architecture", "scenario", "recording", "glossary")
"""In reading order."""


def page_path(name: str) -> Path:
    """Return where a page of the manual lies.

    Raises
    ------
    InputError
        There is no such page.
    """
    if name not in PAGES:
        raise InputError(f"page '{quoted(name)}': unknown; the pages are {', '.join(PAGES)}")
    return Path(__file__).parents[1] / "doc" / f"{name}.md"


def glossary_entries() -> dict[str, str]:
    """Return the glossary: each word, in the page's order, with its explanation."""
    entries = {}
    for paragraph in page_path("glossary").read_text("utf-8").split("\n\n"):
        if paragraph.startswith("**"):
            word, _, said = paragraph.removeprefix("**").partition("**: ")
            entries[word] = " ".join(said.split())
    return entries


@click.command("doc")
@click.argument("page", default="index")
@click.option("--path", is_flag=True, help="Print where the page lies instead.")
def doc(page: str, path: bool) -> None:
    """Print a page of the manual; without PAGE, the list of pages."""
    where = page_path(page)
    click.echo(str(where) if path else where.read_text("utf-8"), nl=path)


@click.command("glossary")
@click.argument("word", required=False)
def glossary(word: str | None) -> None:
    """Explain WORD; without it, list the words."""
    entries = glossary_entries()
    if word is None:
        click.echo("\n".join(entries))
        return
    found = {name: said for name, said in entries.items() if word.lower() in _names(name)}
    if not found:
        raise InputError(f"word '{quoted(word)}': not in the glossary; 'mmulab glossary' lists the words")
    for name, said in found.items():
        click.echo(f"{name}: {said}")


def _names(entry: str) -> list[str]:
    """Return the words that an entry explains, in lower case: ``L0, L1, L2`` are three."""
    return [name.strip().lower() for name in entry.split(",")]
