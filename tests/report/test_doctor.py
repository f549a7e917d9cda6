"""An install that lacks one thing is told so, with what to do."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mmulab.checks import Check
from mmulab.report import doctor

ROOT = Path(__file__).parents[2]
Install = Callable[..., Path]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Let only packages be installed that it is called with: name, version, what it needs, its files."""
    # What reads metadata must be there before the path is gone.
    __import__("jupyter_core.paths")
    __import__("jupyter_client.kernelspec")
    __import__("jupyterlab_server.config")
    with suppress(ImportError):  # once there, it answers in place of the standard library
        __import__("importlib_metadata")
    for name in ("requirements", "specifiers", "utils", "version"):
        __import__(f"packaging.{name}")
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])

    def install(name: str, version: str, *needs: str, files: tuple[str, ...] = (), python: str = "") -> Path:
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        lines += [f"Requires-Python: {python}"] if python else []
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        return folder

    return install


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the first, and for labextensions the only one, that Jupyter looks into."""
    share = tmp_path / "share/jupyter"
    share.mkdir(parents=True)
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(name, str(share))
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])
    return share


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def wrong(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.says for check in checks if not check.ok}


def project() -> dict[str, list[str]]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"": found["dependencies"], "dev": found["optional-dependencies"]["dev"]}


def as_metadata() -> list[str]:
    """Return what an install writes of pyproject.toml."""
    dev = [line.partition(";") for line in project()["dev"]]
    return [
        *project()[""],
        *(f"{need} ; {f'({marker}) and ' if marker else ''}extra == 'dev'" for need, _, marker in dev),
    ]


def test_each_requirement_has_a_line(packages: Install) -> None:
    packages("mmulab", "1", "numpy>=2,<3", "pandas>=2.2", "tqdm>=4.66", "gone; python_version < '3'")
    packages("numpy", "2.4")
    packages("tqdm", "4.1")
    said = named(doctor.python())
    assert "gone" not in said
    assert said["numpy"] == Check("numpy", True, "2.4 (<3,>=2)")
    assert said["pandas"] == Check("pandas", False, "missing; pip install 'pandas>=2.2'")
    assert said["tqdm"].says == "4.1 is installed, >=4.66 is wanted; pip install 'tqdm>=4.66'"
    assert said["what these need"] == Check("what these need", True, "1 packages, each as the others want it")


def test_what_a_package_needs_in_turn_is_followed(packages: Install) -> None:
    packages("mmulab", "1", "numba", "web[server]")
    packages("numba", "0.61", "numpy<2.2", "llvmlite")
    packages("numpy", "2.4")
    packages("web", "1", "tornado; extra == 'server'", "never; extra == 'other'")
    says = named(doctor.python())["what these need"].says
    assert "numba wants numpy: 2.4 is installed, <2.2 is wanted" in says
    assert "numba wants llvmlite: missing" in says
    assert "web wants tornado: missing" in says
    assert "never" not in says


def test_damaged_metadata_is_said(packages: Install) -> None:
    packages("mmulab", "1", "numpy>=2", "tqdm>=4")
    (packages("numpy", "2.4") / "METADATA").write_text("")
    packages("tqdm", "not-a-version")
    said = named(doctor.python())
    assert not said["numpy"].ok
    assert said["numpy"].says.startswith("no version is installed")
    assert said["tqdm"].says.startswith("not-a-version is installed, >=4 is wanted")


def test_another_python_is_said(packages: Install) -> None:
    packages("mmulab", "1", python=">=99")
    assert "not >=99; make setup PYTHONS=another" in named(doctor.python())["Python"].says


def test_no_install_at_all_is_said(packages: Install) -> None:
    lines = ("Python", "mmulab", "what these need")
    assert wrong(doctor.python()) == dict.fromkeys(lines, "mmulab: not installed; make setup")
    assert wrong(doctor.cluster())["distributed"] == "distributed: not installed; pip install distributed"


def test_an_install_is_compared_with_pyproject(packages: Install) -> None:
    needs = as_metadata()
    folder = packages("mmulab", "1", *needs)
    said = named(doctor.python())
    assert said["mmulab"].ok, said["mmulab"].says
    assert set(said) > {line.partition(">")[0] for line in project()[""]}
    assert "pytest" in named(doctor.dev())
    assert "pytest" not in said
    text = (folder / "METADATA").read_text().replace("numba>=0.61", "numba>=0.1")
    (folder / "METADATA").write_text("".join(line for line in text.splitlines(True) if "ruff" not in line))
    why = f"which differs in numba, ruff; pip install -e '{ROOT}[dev]'"
    assert named(doctor.python())["mmulab"].says == f"installed from another pyproject.toml, {why}"


def extension(top: Path, name: str, version: str) -> Path:
    """Make a labextension."""
    folder = top / "labextensions" / name
    (folder / "static").mkdir(parents=True)
    (folder / "static/remoteEntry.js").touch()
    about = {"name": name, "version": version, "jupyterlab": {"_build": {"load": "static/remoteEntry.js"}}}
    (folder / "package.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def lab(packages: Install, jupyter: Path) -> Path:
    """JupyterLab's folder with all that the widgets want."""
    for name, package in doctor.EXTENSIONS.items():
        folder = extension(jupyter, name, "3.0.1")
        packages(package, "3.0.1", files=(f"../share/jupyter/labextensions/{name}/package.json",))
        assert (folder / "package.json").is_file()
    packages("ipywidgets", "8.1", "jupyterlab-widgets~=3.0.0")
    return jupyter


def test_widgets_that_will_show(lab: Path) -> None:
    checks = doctor.widgets()
    assert wrong(checks) == {}
    assert checks[0].says == "8.1 with 3.0.1 (~=3.0.0)"
    assert checks[2].says == f"3.0.1, {lab}/labextensions/bqplot"


def test_a_missing_labextension_is_said(lab: Path) -> None:
    (lab / "labextensions/bqplot/package.json").unlink()
    (lab / "labextensions/bqscales/static/remoteEntry.js").unlink()
    (lab / "labextensions/@jupyter-widgets/jupyterlab-manager/package.json").write_text("{}")
    said = wrong(doctor.widgets())
    mend = "pip install --force-reinstall --no-deps"
    assert said["labextension bqplot"].startswith(f"in none of {lab}/labextensions")
    assert said["labextension bqplot"].endswith(f"; {mend} bqplot")
    assert "no static/remoteEntry.js in it" in said["labextension bqscales"]
    assert said["labextension @jupyter-widgets/jupyterlab-manager"].endswith(
        f"jupyterlab-manager/package.json: damaged; {mend} jupyterlab_widgets"
    )


def test_another_labextension_in_front_is_said(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = extension(tmp_path / "front", "bqplot", "0.5.46")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "front"))
    said = wrong(doctor.widgets())
    assert said == {"labextension bqplot": said["labextension bqplot"]}
    why = f"JupyterLab loads 0.5.46 of {front}, bqplot brought 3.0.1; remove that folder"
    assert said["labextension bqplot"].startswith(why)


def test_a_disabled_labextension_is_said(lab: Path) -> None:
    (lab / "labconfig").mkdir()
    disabled = {"disabledExtensions": {"bqplot": True, "bqscales": False}}
    (lab / "labconfig/page_config.json").write_text(json.dumps(disabled))
    assert wrong(doctor.widgets()) == {"labextension bqplot": "disabled; jupyter labextension enable bqplot"}


def test_a_pair_that_does_not_fit_is_said(packages: Install, jupyter: Path) -> None:
    packages("ipywidgets", "8.1", "jupyterlab-widgets~=3.0.0")
    packages("jupyterlab_widgets", "1.1")
    said = wrong(doctor.widgets())["ipywidgets and jupyterlab_widgets"]
    assert said.startswith("1.1 is installed, ~=3.0.0 is wanted")


def kernel(share: Path, *argv: str) -> Path:
    """Make a kernel spec; return its file."""
    folder = share / "kernels/python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "P", "language": "python"}))
    return folder / "kernel.json"


def said_of_kernel() -> Check:
    return named(doctor.notebooks())["kernel python3"]


@pytest.mark.parametrize("program", ["python", sys.executable])
def test_a_kernel_that_has_this_mmulab(jupyter: Path, program: str) -> None:
    kernel(jupyter, program, "-m", "ipykernel_launcher")
    assert said_of_kernel() == Check("kernel python3", True, f"{sys.executable}, {jupyter}/kernels/python3")
    (count,) = [check.says for check in doctor.notebooks() if check.name == "notebooks"]
    assert count == f"{len(list((ROOT / 'notebooks').glob('*.ipynb')))} in {ROOT / 'notebooks'}"


def test_a_kernel_of_another_interpreter_is_said(jupyter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'mmulab'\" >&2\nexit 1\n")
    other.chmod(0o755)
    spec = kernel(jupyter, str(other))
    why = f"{other} cannot run notebooks (ModuleNotFoundError: No module named 'mmulab')"
    mend = f"remove the folder, or {sys.executable} -m ipykernel install --sys-prefix"
    assert said_of_kernel().says == f"{spec.parent}: {why}; {mend}"
    other.write_text("#!/bin/sh\necho /elsewhere/mmulab/__init__.py\n")
    assert f"{other} has another mmulab, /elsewhere/mmulab; {mend}" in said_of_kernel().says
    other.unlink()
    assert f"{other} cannot be started (No such file or directory); {mend}" in said_of_kernel().says


def test_a_damaged_or_missing_kernel_spec_is_said(jupyter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mend = f"{sys.executable} -m ipykernel install --sys-prefix"
    # ipykernel brings a spec of its own; without it there is none.
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.ensure_native_kernel", False)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelspec", None)
    assert said_of_kernel().says == f"no such kernel spec; {mend}"
    kernel(jupyter, "python").write_text("{")
    assert said_of_kernel().says.startswith("kernel.json is damaged (")


def test_no_browser_and_no_dask_are_said(
    packages: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages("mmulab", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    browser = named(doctor.dev())["Chromium"]
    assert (browser.ok, browser.needed) == (False, False)
    assert "apt-get install chromium" in browser.says
    assert "no such program; pip install" in named(doctor.cluster())["dask"].says
    for name in ("dask", "chromium-browser"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert named(doctor.dev())["Chromium"].says == str(tmp_path / "chromium-browser")
    assert named(doctor.cluster())["dask"].says.startswith(f"{tmp_path}/dask; start 'dask scheduler'")
