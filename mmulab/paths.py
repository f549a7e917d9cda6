"""Where the checkout keeps its notebooks and its data.

mmulab is installed from its checkout (``make setup``, or ``pip install -e .``):
the folders ``notebooks/`` and ``data/`` lie beside the package.
"""

from __future__ import annotations

from pathlib import Path

from mmulab.errors import InputError, near

__all__ = ["checkout", "data", "name_of", "notebook", "notebooks", "short_name"]

_NEWCOMERS = "real_boot"


def checkout() -> Path:
    """Return the top of the checkout that this package was imported from.

    Raises
    ------
    InputError
        If the package lies elsewhere, without ``notebooks/`` and ``data/``.
    """
    top = Path(__file__).resolve().parents[1]
    for folder in ("notebooks", "data"):
        if not (top / folder).is_dir():
            mend = "clone the repository and run 'make setup' in it"
            raise InputError(f"{top}: no folder '{folder}' beside the package; {mend}")
    return top


def data(name: str) -> Path:
    """Return the path of `name` (a file or folder, with ``/``) below ``data/``.

    Raises
    ------
    InputError
        If nothing of that name is there.
    """
    path = checkout() / "data" / name
    if not path.exists():
        raise InputError(f"{path}: no such file in the project's data")
    return path


def name_of(path: Path) -> str:
    """Return the path of a file relative to the checkout, as any machine knows it; absolute if outside."""
    path, top = path.resolve(), checkout()
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.as_posix()


def short_name(path: Path) -> str:
    """Return the path of a file relative to the checkout; its bare name if it lies outside."""
    name = name_of(path)
    return path.name if name.startswith("/") else name


def notebooks() -> list[Path]:
    """Return the project's notebooks: the newcomer's first, the others in the order of their names."""
    found = (checkout() / "notebooks").glob("*.ipynb")
    return sorted(found, key=lambda path: (path.stem != _NEWCOMERS, path.stem))


def notebook(name: str) -> Path:
    """Return the path of the project's notebook `name`, given without ``.ipynb``.

    Raises
    ------
    InputError
        If there is no such notebook; the message names those there are.
    """
    known = {path.stem: path for path in notebooks()}
    if name not in known:
        there = ", ".join(known) or "none"
        raise InputError(f"notebook '{name}': unknown; {near(name, known)}the project has {there}")
    return known[name]
