"""What an install of mmulab has of what it needs: packages, JupyterLab's widgets, a kernel, dask, a browser.

It imports nothing of these at its top, so that it can say that they are missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmulab
from mmulab import paths
from mmulab.checks import Check, checked
from mmulab.errors import InputError, named, quoted

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["BROWSERS", "cluster", "dev", "notebooks", "python", "widgets"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""What Chromium is called; the first that is there drives the tests of pages."""
EXTENSIONS = {
    "@jupyter-widgets/jupyterlab-manager": "jupyterlab_widgets",
    "bqplot": "bqplot",
    "bqscales": "bqscales",
}
"""What JupyterLab must load for the widgets to show, and the package that brings each."""
_ME = "mmulab"
_EXTRA = "dev"
_KERNEL = "python3"
_KERNEL_SECONDS = 60
_SHOWN = 3


def python() -> list[Check]:
    """Look at Python and the packages that ``pyproject.toml`` asks for."""
    return [
        checked("Python", _python),
        checked(_ME, _install),
        *(checked(need.name, partial(_fits, need)) for need in _asked("")),
        checked("what these need", _others),
    ]


def dev() -> list[Check]:
    """Look at what tests and lint need."""
    return [
        *(checked(need.name, partial(_fits, need)) for need in _asked(_EXTRA)),
        checked("Chromium", _chromium, needed=False),
    ]


def widgets() -> list[Check]:
    """Look whether widgets will show in JupyterLab."""
    return [
        checked("ipywidgets and jupyterlab_widgets", _pair),
        *(
            checked(f"labextension {name}", partial(_extension, name, package))
            for name, package in EXTENSIONS.items()
        ),
    ]


def notebooks() -> list[Check]:
    """Look whether the notebooks can be run."""
    return [checked("notebooks", _notebooks), checked(f"kernel {_KERNEL}", _kernel)]


def cluster() -> list[Check]:
    """Look at what ``--scheduler`` needs."""
    return [checked("distributed", _distributed), checked("dask", _dask)]


def _python() -> str:
    is_now = ".".join(map(str, sys.version_info[:3]))
    about = _distribution(_ME).metadata
    # The backport importlib_metadata, once imported, answers for the standard library and raises for None.
    wanted = about["Requires-Python"] if "Requires-Python" in list(about) else None
    specifiers = _packaging("specifiers")
    if wanted and not specifiers.SpecifierSet(wanted).contains(is_now, prereleases=True):
        raise InputError(f"{sys.executable} is {is_now}, not {wanted}; make setup PYTHONS=another")
    return f"{is_now}, {sys.executable}"


def _install() -> str:
    found = _distribution(_ME)
    top = Path(mmulab.__file__).resolve().parents[1]
    pyproject = top / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        wanted = _ranges([*project["dependencies"], *project["optional-dependencies"][_EXTRA]])
        differs = ", ".join(sorted({name for name, _ in wanted ^ _ranges(found.requires or [])}))
        if differs:
            why = f"installed from another pyproject.toml, which differs in {differs}"
            raise InputError(f"{why}; pip install -e '{top}[{_EXTRA}]'")
    return f"{found.version}, {top}"


def _ranges(lines: list[str]) -> set[tuple[str, Any]]:
    requirement = _packaging("requirements").Requirement
    canonical = _packaging("utils").canonicalize_name
    needs = [requirement(line) for line in lines]
    return {(canonical(need.name), need.specifier) for need in needs}


def _packaging(module: str) -> Any:
    try:
        return importlib.import_module(f"packaging.{module}")
    except ImportError as error:
        raise InputError("packaging is missing, which reads version ranges; pip install packaging") from error


def _distribution(name: str) -> importlib.metadata.Distribution:
    """Return what is installed under a name; raises InputError."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        mend = "make setup" if name == _ME else f"pip install {name}"
        raise InputError(f"{name}: not installed; {mend}") from error
    try:
        found.version.strip()
    except (AttributeError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{name}: its metadata is damaged; pip install --force-reinstall {name}") from error
    return found


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what a package asks for on this machine, and what its extra adds."""
    requirement = _packaging("requirements").Requirement
    for line in _distribution(name).requires or []:
        need = requirement(line)
        plain = need.marker is None or need.marker.evaluate({"extra": ""})
        if plain if not extra else not plain and need.marker.evaluate({"extra": extra}):
            yield need


def _asked(extra: str) -> list[Requirement]:
    """Return what mmulab asks for; nothing where that cannot be read, which :func:`_install` says."""
    try:
        return list(_needs(_ME, extra))
    except InputError:
        return []


def _fits(need: Requirement) -> str:
    """Return the version of what is wanted; raises InputError if it is missing or another."""
    wanted = str(need.specifier)
    mend = f"pip install '{need.name}{wanted}'"
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"missing; {mend}") from error
    except (KeyError, TypeError, OSError):  # an error of the backport's own is an OSError
        version = ""
    invalid = _packaging("version").InvalidVersion
    try:
        fits = need.specifier.contains(version or "", prereleases=True)
    except invalid:
        fits = False
    if not fits:
        raise InputError(f"{version or 'no version'} is installed, {wanted} is wanted; {mend}")
    return f"{version} ({wanted})" if wanted else version


def _others() -> str:
    """Look at the packages that the packages ask for in turn."""
    seen = {(_ME, "")}
    todo = [(_ME, "")]
    wrong: list[str] = []
    canonical = _packaging("utils").canonicalize_name
    while todo:
        name, extra = todo.pop()
        for need in _needs(name, extra):
            found = checked(need.name, partial(_fits, need))
            if not found.ok:
                if name != _ME:
                    wrong.append(f"{name} wants {found.name}: {found.says}")
                continue
            new = {(canonical(need.name), one) for one in ("", *need.extras)} - seen
            seen |= new
            todo += sorted(new)
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if wrong[_SHOWN:] else []
        raise InputError("; ".join([*wrong[:_SHOWN], *more]))
    return f"{len({name for name, _ in seen}) - 1} packages, each as the others want it"


def _pair() -> str:
    canonical = _packaging("utils").canonicalize_name
    for need in _needs("ipywidgets", ""):
        if canonical(need.name) == "jupyterlab-widgets":
            return f"{_distribution('ipywidgets').version} with {_fits(need)}"
    raise InputError("ipywidgets asks for no jupyterlab_widgets; pip install 'ipywidgets>=8'")


def _extension(name: str, package: str) -> str:
    """Look at what JupyterLab will load under a name."""
    try:
        from jupyter_core.paths import jupyter_path
        from jupyterlab_server.config import get_static_page_config
    except ImportError as error:
        raise InputError(f"JupyterLab is not installed whole ({error}); pip install jupyterlab") from error
    mend = f"pip install --force-reinstall --no-deps {package}"
    tops = [Path(top) for top in jupyter_path("labextensions")]
    folder = next((top / name for top in tops if (top / name / "package.json").is_file()), None)
    if folder is None:
        raise InputError(f"in none of {', '.join(map(named, tops))}; {mend}")
    version, load = _described(folder / "package.json", mend)
    if not (folder / load).is_file():
        raise InputError(f"{named(folder)}: no {load} in it; {mend}")
    brought = _brought(name, package, mend)
    if brought != version:
        why = f"JupyterLab loads {version} of {named(folder)}, {package} brought {brought}"
        raise InputError(f"{why}; remove that folder, or {mend}")
    off = get_static_page_config(level="all").get("disabledExtensions") or {}
    off_names = [one for one in off if isinstance(off, list) or off[one]]
    if any(one.partition(":")[0] == name for one in off_names):
        raise InputError(f"disabled; jupyter labextension enable {name}")
    return f"{version}, {folder}"


def _described(path: Path, mend: str) -> tuple[str, str]:
    """Return the version that a labextension has, and the file that it begins with."""
    try:
        told = json.loads(path.read_text("utf-8"))
        return str(told["version"]), str(told["jupyterlab"]["_build"]["load"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{named(path)}: damaged; {mend}") from error


def _brought(name: str, package: str, mend: str) -> str:
    """Return the version of the labextension that a package brought."""
    end = f"labextensions/{name}/package.json"
    for file in _distribution(package).files or []:
        if file.as_posix().endswith(end):
            return _described(Path(str(file.locate())), mend)[0]
    raise InputError(f"the installed {package} brought none; {mend}")


def _notebooks() -> str:
    found = paths.notebooks()
    top = paths.checkout() / "notebooks"
    if not found:
        raise InputError(f"{named(top)}: no notebook in it; git checkout -- notebooks")
    return f"{len(found)} in {top}"


def _kernel() -> str:
    """Look whether the kernel that the notebooks name starts an interpreter that has this mmulab."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError as error:
        raise InputError(f"jupyter_client is missing ({error}); pip install ipykernel") from error
    mend = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        spec = KernelSpecManager().get_kernel_spec(_KERNEL)
        program = str(spec.argv[0])
    except NoSuchKernel as error:
        raise InputError(f"no such kernel spec; {mend}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"kernel.json is damaged ({quoted(error)}); {mend}") from error
    # jupyter_client starts its own interpreter where a spec only says "python".
    if program in {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2])}:
        program = sys.executable
    why = _started(program, dict(spec.env))
    if why:
        mine = paths.checkout()
        other = f"remove the folder, or {mend}"
        mend = f"pip install -e '{mine}[{_EXTRA}]'" if program == sys.executable else other
        raise InputError(f"{named(spec.resource_dir)}: {named(program)} {why}; {mend}")
    return f"{program}, {spec.resource_dir}"


def _started(program: str, environment: dict[str, str]) -> str:
    """Start an interpreter as a kernel is; return what is wrong with it, or ""."""
    command = [program, "-c", "import ipykernel, mmulab; print(mmulab.__file__)"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | environment,
            cwd=paths.checkout() / "notebooks",
            timeout=_KERNEL_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"cannot be started ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"says nothing for {_KERNEL_SECONDS} s"
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        return f"cannot run notebooks ({quoted(said, 200)})"
    other = Path(done.stdout.strip()).resolve().parent
    return "" if other == Path(mmulab.__file__).resolve().parent else f"has another mmulab, {named(other)}"


def _distributed() -> str:
    return _distribution("distributed").version


def _dask() -> str:
    beside = Path(sys.executable).with_name("dask")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("dask")
    if found is None:
        raise InputError("there is no such program; pip install --force-reinstall dask")
    worker = "dask worker tcp://HOST:8786 --nworkers auto --nthreads 1"
    return f"{found}; start 'dask scheduler', and '{worker}' on each machine"


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise InputError("there is none, so tests of pages are skipped; apt-get install chromium")
    return found
