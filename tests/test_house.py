"""The house rules: who imports whom, what stays out of a quick start, what lies where."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmulab.cli.main import COMMANDS
from mmulab.report.parameters import declared

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"IPython", "bqplot", "ipywidgets", "jupyterlab", "nbconvert", "numba", "pandas", "papermill"}
COMPILED = {"mmulab.x86.batch"}
"""Modules that import numba, and are themselves imported only where a batch runs."""
ABOVE_THE_ENGINE = {"mmulab.cli", "mmulab.lab", "mmulab.report", "mmulab.widgets", "mmulab.check"}
TOP_LEVEL = {
    ".ci",
    ".gitattributes",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "data",
    "environment.yml",
    "mmulab",
    "notebooks",
    "pyproject.toml",
    "requirements.lock",
    "tests",
}


def tracked() -> list[Path]:
    """Return the files of the repository, relative to its top."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def modules() -> list[str]:
    """Return the name of every module of the package."""
    paths = sorted((ROOT / "mmulab").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def python(script: str) -> str:
    """Run `script` in a fresh interpreter and return what it prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported_by(statement: str) -> set[str]:
    """Run `statement` in a fresh interpreter and return the top-level modules it left behind."""
    script = f"{statement}\nimport sys\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    return set(python(script).split("\n"))


def test_imports_point_downward() -> None:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    assert "0 broken" in python(command)


def test_the_table_of_the_house_has_the_rooms_of_the_layers() -> None:
    text = (ROOT / "mmulab/__init__.py").read_text("utf-8")
    rows = re.findall(r"^(\d+) +(?:``|:mod:`)mmulab\.(\w+)`", text, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (floors,) = [one for one in project["tool"]["importlinter"]["contracts"] if one["id"] == "floors"]
    layers = [re.findall(r"\w+", layer) for layer in floors["layers"]]
    assert [room for _, room in rows] == [room for layer in layers for room in layer]
    numbers = [int(number) for number, _ in rows]
    assert numbers == sorted(numbers, reverse=True)
    floor = {room: number for number, room in rows}
    assert all(len({floor[room] for room in layer}) == 1 for layer in layers)
    above = [floor[layer[0]] for layer in layers if floor[layer[0]] != "0"]
    assert len(set(above)) == len(above)
    said = {path.parent.name: path.read_text("utf-8") for path in (ROOT / "mmulab").glob("*/__init__.py")}
    told = {room: found[1] for room in said if (found := re.match(r'"""Floor (\d+):', said[room]))}
    assert told
    assert told == {room: floor[room] for room in told}


def test_package_imports_nothing() -> None:
    bare = imported_by("pass")
    assert imported_by("import mmulab") - bare == {"mmulab"}


def test_engine_imports_no_notebook_package() -> None:
    engine = [name for name in modules() if ".".join(name.split(".")[:2]) not in ABOVE_THE_ENGINE]
    engine = [name for name in engine if name not in COMPILED]
    assert "mmulab.events" in engine
    assert not imported_by("import " + ", ".join(engine)) & HEAVY


def test_command_line_help_imports_no_notebook_package() -> None:
    loaded = imported_by("from mmulab.cli.main import run\nassert run(['--help']) == 0")
    assert "click" in loaded
    assert not loaded & HEAVY


def test_every_command_is_listed() -> None:
    named = {entry.target.split(":")[0] for entry in COMMANDS.values()}
    commands = {
        f"mmulab.cli.{path.stem}"
        for path in (ROOT / "mmulab/cli").glob("*.py")
        if path.stem != "main" and re.search(r"^@click\.(command|group)\(", path.read_text("utf-8"), re.M)
    }
    assert named == commands


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_command_exists(name: str) -> None:
    module, attribute = COMMANDS[name].target.split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == attribute]
    assert functions, f"{COMMANDS[name].target} is missing"
    assert ast.get_docstring(functions[0])


def test_packages_say_what_they_are() -> None:
    folders = {path.parent for path in (ROOT / "mmulab").rglob("*.py")}
    for folder in sorted(folders):
        init = folder / "__init__.py"
        assert init.exists(), f"{init} is missing"
        assert ast.get_docstring(ast.parse(init.read_text("utf-8"))), f"{init} has no docstring"


def test_files_stay_small() -> None:
    files = [path for path in tracked() if path.suffix == ".py"]
    sizes = {str(path): len((ROOT / path).read_text("utf-8").splitlines()) for path in files}
    assert sizes
    assert not {path: size for path, size in sizes.items() if size >= 500}


def test_top_level_is_exactly_what_is_allowed() -> None:
    found = {path.parts[0] for path in tracked()}
    assert found <= TOP_LEVEL
    assert TOP_LEVEL - found <= {".gitattributes"}


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_clean(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert "widgets" not in notebook["metadata"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged 'parameters'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_keeps_its_cells_apart(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"cell-[a-z0-9-]+", name) for name in ids), "a random id changes with every save"
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "not as Jupyter saves it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_declares_one_result_and_no_output_widget(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"])))]
    called = [ast.unparse(node.func).split(".")[-1] for node in nodes if isinstance(node, ast.Call)]
    assert called.count("Result") == 1
    # papermill may lose the reply of a cell that shows one, and waits for it for good.
    assert "Output" not in called


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_checks_its_parameters(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    tagged = next(at for at, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    calls = ast.walk(ast.parse("".join(cells[tagged + 1]["source"])))
    checks = [
        node for node in calls if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("check")
    ]
    assert len(checks) == 1, "the cell after the parameters calls mmulab.report.parameters.check"
    assert {keyword.arg for keyword in checks[0].keywords} == set(declared(path))


def requirements(lines: list[str]) -> dict[str, str]:
    """Return name -> version range of requirement lines."""
    return {item.name: str(item.specifier) for item in map(Requirement, lines)}


def test_environment_matches_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = [line for line in environment["dependencies"] if isinstance(line, dict)]
    ranges = requirements([line.replace("python", "python ", 1) for line in conda])
    assert set(ranges) == {"python", "pip"}
    assert Requirement("python" + project["requires-python"]).specifier == Requirement(conda[0]).specifier
    # Everything else comes from pyproject.toml itself, so names and ranges cannot differ from it.
    assert pip == [{"pip": ["-e .[dev]"]}]
    assert "dev" in project["optional-dependencies"]


def locked() -> list[Requirement]:
    """Return the lines of the lock file, without their hashes."""
    text = (ROOT / "requirements.lock").read_text("utf-8")
    return [Requirement(line.rstrip(" \\")) for line in text.splitlines() if line[:1] not in ("", "#", " ")]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_every_dependency_in_its_range(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    machine |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix", "extra": ""}
    pins: dict[str, str] = {}
    for line in locked():
        if line.marker is None or line.marker.evaluate(machine):
            assert canonicalize_name(line.name) not in pins, f"{line.name} is pinned twice"
            (pin,) = line.specifier
            assert pin.operator == "=="
            pins[canonicalize_name(line.name)] = pin.version
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], "setuptools>=65"]
    for need in map(Requirement, wanted):
        if need.marker is not None and not need.marker.evaluate(machine):
            continue
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), need


def test_lock_has_a_hash_for_every_pin() -> None:
    parts = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text("utf-8"), flags=re.M)[1:]
    assert len(parts) == len(locked()) > 100
    assert all("--hash=sha256:" in part for part in parts)


def test_mandated_packages_are_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = requirements(project["dependencies"])
    mandated = ("jupyterlab", "ipywidgets", "numpy", "bqplot", "papermill")
    for name in (*mandated, "distributed", "jsonschema", "pyyaml"):
        assert ">=" in declared[name]
        assert "<" in declared[name]
