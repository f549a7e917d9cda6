"""Recordings that someone made up: none runs code or writes; each is one line that names file and part."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmulab import limits
from mmulab.cli.main import run
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import Passthrough
from mmulab.kvm.roles.root_strategy import shadow
from mmulab.scenario.record import record
from mmulab.scenario.text import parse_scenario
from mmulab.trace.file import HEADER, open_recording, save
from mmulab.trace.recording import Recording
from mmulab.trace.versions import VERSION_ARRAYS

SCENARIO = """mmulab-scenario 1
mode 32
root 10000
alloc 20000
m4 10400 20067
m4 20000 100067
ops
rd u 40000000
wr u 40000008 1
invlpg 40000000
rd u 40000000
end
"""
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "a.mmr"
    save(record(parse_scenario(SCENARIO)), path)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "b.mmr"
    copy.write_bytes(made.read_bytes())
    return copy


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def change_header(path: Path, change: Callable[[Any], object]) -> None:
    members = members_of(path)
    header = json.loads(members[HEADER])
    change(header)
    members[HEADER] = json.dumps(header).encode()
    write(path, members)


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def change_state(path: Path, change: Callable[[Any], object]) -> None:
    """Change the small state at the first checkpoint, which is version 0 of the table of that name."""
    members = members_of(path)
    number = json.loads(members[HEADER])["tables"].index("small")
    names = [f"state/{number}/{part}.npy" for part in VERSION_ARRAYS]
    places, ends, blob = (np.load(io.BytesIO(members[name])) for name in names)
    state = json.loads(zlib.decompress(blob[: ends[0]].tobytes()))
    change(state)
    first = zlib.compress(json.dumps(state).encode())
    grown = len(first) - int(ends[0])
    rest = blob[ends[0] :].tobytes()
    arrays = places, (ends.astype(np.int64) + grown).astype(np.uint64), np.frombuffer(first + rest, np.uint8)
    write(path, {**members, **{name: npy(array) for name, array in zip(names, arrays, strict=True)}})


def visit_all(recording: Recording) -> None:
    for op in range(len(recording.ops)):
        recording.after(op)


def complaint(path: Path) -> str | None:
    """Open a file and look at every state; return what mmulab says of it."""
    try:
        visit_all(open_recording(path))
    except InputError as error:
        return str(error)
    return None


def refused(path: Path) -> str:
    text = complaint(path)
    assert text is not None
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text


def test_the_file_itself_is_fine(path: Path) -> None:
    visit_all(open_recording(path))


# Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [
        {"f": "kvm.roles.design:find_design"},
        {"f": "trace.file:save"},
        {"o": ["kvm.state:Kvm", {}]},
        {"o": ["trace.file:_Reader", {"path": "x"}]},
        {"r": ["report.parameters:Parameter", {}]},
        {"r": ["os:system", {}]},
        {"e": ["builtins:eval", "1"]},
        {"c": -1},
        {"x": 1},
        {},
        {"r": 1, "o": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("at", ["host", "cpu", "slots", "stubs"])
def test_no_class_or_function_but_the_known_ones(path: Path, item: Any, at: str) -> None:
    change_header(path, lambda header: header["config"].update({at: item}))
    refused(path)


@pytest.mark.parametrize("kind", ["machine.op:Op", "kvm.state:Kvm", "events:kvm_exit", "no:where", 7, None])
def test_a_log_holds_ops_and_nothing_else(path: Path, kind: Any) -> None:
    change_header(path, lambda header: header["logs"]["ops"][0].update(type=kind))
    assert "nothing that a recording may hold" in refused(path)


@pytest.mark.parametrize("name", ["emit", "watch", "memory", "slots", "config", "execute", "__class__", "x"])
@pytest.mark.parametrize("part", ["kvm", "machine"])
def test_no_attribute_is_set_that_is_not_written(path: Path, part: str, name: str) -> None:
    change_state(path, lambda state: state[part].update({name: 1}))
    assert "has other attributes in mmulab" in refused(path)


@pytest.mark.parametrize("name", ["emit", "kvm", "id", "__class__"])
def test_no_attribute_of_a_vcpu_either(path: Path, name: str) -> None:
    change_state(path, lambda state: state["vcpus"][0].update({name: 1}))
    assert "a vCPU has other attributes in mmulab" in refused(path)


def test_nor_of_a_memslot(path: Path) -> None:
    change_state(path, lambda state: state["slots"][0][1][0].update(rmap=[]))
    assert "KvmMemslot has other attributes in mmulab" in refused(path)


# Types and ranges ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("cr3", "10000"),
        ("cr3", 1 << 64),
        ("stat", []),
        ("exception", {"t": [1, 2]}),
        ("mmu", None),
        ("mmu", {"same": "kvm"}),
        ("cr3", {"same": "root_mmu"}),
        ("nested", 5),
        ("cpu", 5),
    ],
)
def test_an_attribute_has_its_type(path: Path, attribute: str, value: Any) -> None:
    change_state(path, lambda state: state["vcpus"][0].update({attribute: value}))
    refused(path)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("base_frame", 1 << 40), ("base_frame", -1), ("npages", 1 << 40), ("npages", 0), ("as_id", 2)],
)
def test_a_memslot_lies_in_memory(path: Path, attribute: str, value: int) -> None:
    change_state(path, lambda state: state["slots"][0][1][0].update({attribute: value}))
    assert "a memslot lies in no memory" in refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backing_bytes", limits.BACKING_BYTES + 4096),
        ("backing_bytes", 0),
        ("backing_bytes", 5000),
        ("backing_bytes", "1"),
        ("table_frames", 1 << 40),
        ("vcpus", 0),
        ("vcpus", 1 << 30),
        ("manual_dirty", 9),
        ("thp", "yes"),
        ("disable_nx_huge_pages", "no"),
        ("cpuid_after_run", "x"),
    ],
)
def test_a_machine_has_bounds(path: Path, name: str, value: Any) -> None:
    change_header(path, lambda header: header["config"].update({name: value}))
    refused(path)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("gva", {"aside": [[99, 1]]}),
        ("gva", {"aside": [[0, "x"]]}),
        ("gva", {"aside": [[0, 1 << 70]]}),
        ("mode", {"words": ["x"]}),
        ("mode", {"words": []}),
        ("vcpu", {"aside": [["0", 1]]}),
    ],
)
def test_an_ops_field_has_its_type(path: Path, field: str, change: dict[str, Any]) -> None:
    def set_column(header: Any) -> None:
        read = next(t for t in header["logs"]["ops"] if t["type"] == "machine.op:Read")
        read["columns"][field].update(change)

    change_header(path, set_column)
    refused(path)


@pytest.mark.parametrize("field", ["vcpu", "size"])
def test_an_op_is_one_of_this_machine(path: Path, field: str) -> None:
    members = members_of(path)
    tables = json.loads(members[HEADER])["logs"]["ops"]
    number = next(n for n, table in enumerate(tables) if table["type"] == "machine.op:Read")
    name = f"ops/{number}/{field}.npy"
    members[name] = npy(np.load(io.BytesIO(members[name])) + np.uint8(50))
    write(path, members)
    assert f"{field} of an op Read is out of range" in refused(path)


@pytest.mark.parametrize(
    "key", ["info", "config", "logs", "tables", "state_constants", "constants", "verdicts"]
)
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [1], {"a": 1}], ids=str)
def test_a_header_of_another_form(path: Path, key: str, value: Any) -> None:
    change_header(path, lambda header: header.update({key: value}))
    if (key, value) != ("verdicts", {}):
        refused(path)


def test_a_header_nested_without_end(path: Path) -> None:
    write(path, {**members_of(path), HEADER: b'{"format": 2, "config": ' + b"[" * 100_000})
    assert "nested deeper than" in refused(path)


# Arrays and damage ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [npy(np.array([object()], object)), npy(np.zeros((2, 2), np.int64)), npy(np.zeros(3)), b"", b"PK"],
    ids=["pickle", "axes", "floats", "empty", "zip"],
)
@pytest.mark.parametrize("name", ["ends.npy", "checkpoint_ops.npy", "ops/kinds.npy", "state/0/blob.npy"])
def test_an_array_of_another_kind(path: Path, name: str, data: bytes) -> None:
    write(path, {**members_of(path), name: data})
    refused(path)


@pytest.mark.parametrize("name", ["ends.npy", "checkpoint_ops.npy"])
@pytest.mark.parametrize("value", [-1, 1 << 40])
def test_numbers_that_ascend_and_end(path: Path, name: str, value: int) -> None:
    members = members_of(path)
    array = np.load(io.BytesIO(members[name])).copy()
    array[-1] = value
    write(path, {**members, name: npy(array)})
    assert "its columns do not fit together" in refused(path)


def test_every_part_is_missed(path: Path) -> None:
    members = members_of(path)
    for name in members:
        write(path, {other: data for other, data in members.items() if other != name})
        assert name in refused(path) or "scenario" in refused(path)


def test_damage_anywhere_is_one_line_or_nothing(made: Path, tmp_path: Path) -> None:
    """Bytes of the parts change under a valid archive: it opens and shows states, or says what is wrong."""
    rng = random.Random(6)
    whole = members_of(made)
    path = tmp_path / "c.mmr"
    for _ in range(150):
        members = dict(whole)
        name = rng.choice([*members])
        data = bytearray(members[name])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        write(path, {**members, name: bytes(data)})
        said = complaint(path)
        assert said is None or said.startswith(f"{path}: ")


def test_the_command_line_says_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_state(path, lambda state: state["vcpus"][0].update(cr3="x"))
    assert run(["step", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mmulab: {path}: the state ")
    assert said.count("\n") == 1


# Designs -------------------------------------------------------------------------------------


OWN = """from mmulab.kvm.roles.design import Passthrough
from mmulab.kvm.roles.root_strategy import shadow
class Own(Passthrough):
    name = "{name}"
"""


def test_a_users_design_is_known_by_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN.format(name="own"))
    (tmp_path / "s.mmu").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    assert run(["step", "s.mmu", "--design", "own.py:Own", "--save", "own.mmr"]) == 0
    assert run(["step", "own.mmr", "--ftrace"]) == 2
    assert "give --design own.py:Own, or " in capsys.readouterr().err
    assert run(["step", "own.mmr", "--design", "own.py:Own", "--ftrace"]) == 0
    (tmp_path / "own.py").write_text(OWN.format(name="own") + "# changed\n")
    capsys.readouterr()
    assert run(["step", "own.mmr", "--design", "own.py:Own", "--ftrace"]) == 2
    assert "is no longer the text that was recorded" in capsys.readouterr().err


def test_a_design_that_takes_the_name_of_a_built_in_one_does_not_pass_for_it(tmp_path: Path) -> None:
    class Impostor(Passthrough):
        """Has the name of 6.1's design."""

    recording = record(parse_scenario(SCENARIO), kernel=LINUX_6_1.with_(design=Impostor()))
    save(recording, tmp_path / "a.mmr")
    assert "design 'passthrough' is not one of mmulab's" in refused(tmp_path / "a.mmr")
    opened = open_recording(tmp_path / "a.mmr", designs={"passthrough": Impostor()})
    assert type(opened.config.kernel.design) is Impostor


def test_roots_come_back_with_the_kernel(tmp_path: Path) -> None:
    kernel = LINUX_6_1.with_(root_strategy=shadow)
    save(record(parse_scenario(SCENARIO), kernel=kernel), tmp_path / "a.mmr")
    assert open_recording(tmp_path / "a.mmr").config.kernel.root_strategy is shadow
