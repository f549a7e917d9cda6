"""``make reference``: the manual and every module as pages for a browser, which need no network.

The manual is the Markdown of ``mmulab/doc``; the pages of the modules are made by pdoc, of the
extra ``dev``. The first page leads to all others.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

import mmulab
from mmulab import files
from mmulab.errors import InputError
from mmulab.report import folder, page

__all__ = ["build"]

PACKAGE = Path(mmulab.__file__).parent
_MARKUP = re.compile(r"(?::\w+:)?`+~?(.*?)`+")
"""A name in a docstring, in reStructuredText's marks."""
_MODULE = re.compile(r"<code>(mmulab(?:/\w+)*)(\.py)?</code>")
"""A module or a package, as pages of the manual name it."""


def build(out: Path) -> Path:
    """Write the reference and return its first page.

    Parameters
    ----------
    out : pathlib.Path
        The folder, replaced as a whole.

    Raises
    ------
    InputError
        pdoc is not installed, or the folder cannot be written.
    """
    with folder.whole(out) as building, files.disk_errors_of(out):
        for source in sorted((PACKAGE / "doc").glob("*.md")):
            text = _manual_page(source)
            (building / f"{source.stem}.html").write_text(text, "utf-8")
        for name, text in _module_pages():
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return out / "index.html"


def modules() -> list[str]:
    """Return the name of each module that can be imported without running a command, packages first."""
    paths = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not name.endswith("__main__"))


def _module_pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each module's page, then the index that they search in."""
    try:
        import pdoc
        import pdoc.render
    except ImportError as error:
        raise InputError(f"pdoc: {error}; pip install -e '.[dev]'") from error
    said = f"mmulab {mmulab.__version__}"
    pdoc.render.configure(docformat="numpy", footer_text=said, show_source=False)
    with warnings.catch_warnings():
        # pdoc looks for what a NamedTuple's annotations name in the module of its __init__, which is none.
        warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
        known = {name: pdoc.doc.Module.from_name(name) for name in modules()}
        for name, module in known.items():
            yield f"{name.replace('.', '/')}.html", pdoc.render.html_module(module, known)
        yield "search.js", pdoc.render.search_index(known)


# The manual -----------------------------------------------------------------------------


def _manual_page(source: Path) -> str:
    from nbconvert.filters import markdown2html

    text = source.read_text("utf-8")
    title = text.splitlines()[0].removeprefix("# ")
    body = _MODULE.sub(_link, markdown2html(text))
    if source.stem == "index":
        body = re.sub(r"<td><code>(\w+)</code></td>", r'<td><a href="\1.html">\1</a></td>', body) + _rooms()
    else:
        body = f'<p><a href="index.html">The manual</a></p>\n{body}'
    return page.shell(title, body)


def _link(named: re.Match[str]) -> str:
    """Return a link to the page of a file or a folder that is a module; other names stay as they are."""
    path = PACKAGE.parent / named[1]
    is_there = path.with_suffix(".py").is_file() if named[2] else (path / "__init__.py").is_file()
    return f'<a href="{named[1]}.html">{named[0]}</a>' if is_there else named[0]


def _rooms() -> str:
    """Return a list of the modules, room by room, each with the first sentence of what it says of itself."""
    lines = ['<h2 id="modules">Modules</h2>', f"<p>{_entry('mmulab')}</p>"]
    for room, inside in groupby(modules()[1:], key=lambda name: ".".join(name.split(".")[:2])):
        names = list(inside)
        if len(names) == 1:
            lines.append(f"<p>{_entry(room)}</p>")
            continue
        rows = "".join(f"<li>{_entry(name)}</li>" for name in names)
        lines.append(f"<details><summary>{room}: {_summary(room)}</summary>\n<ul>{rows}</ul></details>")
    return "\n".join(lines)


def _entry(name: str) -> str:
    return f'<a href="{name.replace(".", "/")}.html">{name}</a>: {_summary(name)}'


def _summary(name: str) -> str:
    path = PACKAGE.parent / name.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
    return escape(_MARKUP.sub(r"\1", said.split("\n\n")[0].replace("\n", " ")))


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
