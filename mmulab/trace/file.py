"""Recordings as files: one zip archive with a header, the logs' columns and the checkpoints.

Members: ``recording.json`` (format and version first, configuration, how the
columns are to be read), ``scenario.mmu`` (the scenario as text, where there is
one), and arrays in numpy's own format.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmulab.archive import Archive, open_archive
from mmulab.errors import InputError, named, quoted
from mmulab.files import parse_json, writing
from mmulab.kvm.behaviours import CHANGES, Behaviours, find_behaviour
from mmulab.kvm.bug import Bugs, with_bugs
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.derivation import DERIVATIONS, Derivation
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.root_strategy import find_root_strategy
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.machine.config import MachineConfig, check_bounds
from mmulab.machine.op import SetMemslot
from mmulab.trace.checkpoints import FRAMES, SMALL, Checkpoints
from mmulab.trace.codec import Constants, Json, decode, encode
from mmulab.trace.columns import SHIFT, Log
from mmulab.trace.known import LOGS as KNOWN_LOGS
from mmulab.trace.known import check, find, name_of, record_fields
from mmulab.trace.recording import DAMAGE, Info, Recording
from mmulab.trace.versions import Versions

FORMAT = 6
SUFFIX = ".mmr"
HEADER, SCENARIO = "recording.json", "scenario.mmu"
AGAIN = "record it again"
_LOGS = ("ops", "outcomes", "events")
_OF_STEPS = {"steps": "int64", "helpers": "uint8"}
_APART = ("kernel",)
_KERNEL = ("name", "source", "validity", "cpuid_after_run", "free_roots_lock", "eager_split", "events")
"""What is kept of a kernel as it is; its design, derivation and root strategy are found again by name."""
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


Array = npt.NDArray[Any]


def save(recording: Recording, path: str | Path) -> None:
    """Write a recording to one file, whole or not at all.

    Raises
    ------
    InputError
        The file cannot be written.
    ValueError
        The role design or the derivation has no name that it could be found by again.
    """
    constants = Constants()
    arrays: dict[str, Array] = {"ends": recording.ends, "checkpoint_ops": recording.checkpoint_ops}
    arrays |= {name: getattr(recording, name) for name in _OF_STEPS}
    logs = {name: _put_log(getattr(recording, name), name, arrays, constants) for name in _LOGS}
    for number, (_, versions) in enumerate(recording.checkpoints.tables.items()):
        arrays |= {f"state/{number}/{part}": array for part, array in versions.arrays().items()}
    info = asdict(recording.info)
    scenario = info.pop("scenario")
    header = {
        "format": FORMAT,
        "version": recording.info.version,
        "info": info,
        "config": _put_config(recording.config, constants),
        "logs": logs,
        "tables": list(recording.checkpoints.tables),
        "checkpoints": recording.checkpoints.count,
        "state_constants": recording.checkpoints.constants.encoded,
        "verdicts": {str(op): verdict for op, verdict in recording.verdicts.items()},
        "found_wrongly": {str(op): list(page) for op, page in recording.found_wrongly.items()},
        "constants": constants.encoded,
    }
    with writing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _write(archive, HEADER, json.dumps(header).encode())
        _write(archive, SCENARIO, scenario.encode())
        for name, array in arrays.items():
            _write(archive, f"{name}.npy", _npy(array))


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a member without the hour, so that the same recording is the same bytes."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, data)


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _put_config(config: MachineConfig, constants: Constants) -> Json:
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _APART}
    return {
        **{name: encode(value, constants) for name, value in values.items()},
        "kernel": _put_kernel(config.kernel, constants),
    }


def _put_kernel(kernel: Kernel, constants: Constants) -> Json:
    design, derivation = kernel.design, kernel.derivation
    if not design.name or not derivation.name:
        raise ValueError("a recording keeps design and derivation by name: give them one")
    return {
        **{name: encode(getattr(kernel, name), constants) for name in _KERNEL},
        "behaviours": kernel.behaviours.names(),
        "bugs": kernel.bugs.names(),
        "design": {
            "name": design.name,
            "own": is_own(design),
            "reference": design.reference,
            "digest": design.digest,
        },
        "derivation": derivation.name,
        "root_strategy": kernel.root_strategy.name,
        "sync": str(kernel.sync),
    }


def is_own(design: RoleDesign) -> bool:
    """Whether a design is a user's own, whatever it calls itself."""
    return DESIGNS.get(design.name) is None or type(DESIGNS[design.name]) is not type(design)


def _put_log(log: Log, name: str, arrays: dict[str, Array], constants: Constants) -> Json:
    arrays[f"{name}/kinds"] = log.kinds()
    tables = []
    for number, table in enumerate(log.tables):
        columns = {}
        for field, column in table.columns.items():
            arrays[f"{name}/{number}/{field}"] = column.compact()
            columns[field] = {
                "words": [getattr(word, "value", word) for word in column.words],
                "aside": [[row, encode(value, constants)] for row, value in column.aside.items()],
            }
        tables.append({"type": name_of(table.kind), "count": len(log.places(table.kind)), "columns": columns})
    return tables


def open_recording(
    path: str | Path,
    *,
    designs: Mapping[str, RoleDesign] | None = None,
    derivations: Mapping[str, Derivation] | None = None,
    syncs: Mapping[str, SyncPolicy] | None = None,
) -> Recording:
    """Open a recording. No file makes mmulab run or write anything but the model itself.

    Parameters
    ----------
    path : str or pathlib.Path
    designs, derivations, syncs : mapping, optional
        A user's own, by the names under which the recording keeps them.

    Raises
    ------
    InputError
        No such file; cut or damaged; of another format; its scenario or another member is missing; a
        design that nobody knows, or whose text has changed since.
    """
    path = Path(path)
    with open_archive(path, f"copy it again, or {AGAIN}") as archive:
        return _Reader(archive, designs or {}, derivations or {}, syncs or {}).read()


class _Reader:
    def __init__(
        self,
        archive: Archive,
        designs: Mapping[str, RoleDesign],
        derivations: Mapping[str, Derivation],
        syncs: Mapping[str, SyncPolicy],
    ) -> None:
        self.archive = archive
        self.designs = designs
        self.derivations = {**DERIVATIONS, **derivations}
        self.syncs = syncs

    def read(self) -> Recording:
        header = self._header()
        try:
            return self._read(header)
        except InputError as error:
            raise InputError(_under(named(self.archive.path), error)) from error
        except DAMAGE as error:
            raise self.archive.wrong(f"not as mmulab writes recordings ({quoted(repr(error))})") from error

    def _header(self) -> dict[str, Json]:
        path = self.archive.path
        if HEADER not in self.archive.names:
            raise InputError(f"{named(path)}: not a recording: no {HEADER} as mmulab writes it")
        header = parse_json(self.archive.read(HEADER), f"{named(path)}: {HEADER}")
        if not isinstance(header, dict) or type(header.get("format")) is not int:
            raise InputError(f"{named(path)}: not a recording: no {HEADER} as mmulab writes it")
        if header["format"] != FORMAT:
            raise InputError(
                f"{named(path)}: format {header['format']} of mmulab {quoted(header.get('version'))}, "
                f"this mmulab reads format {FORMAT}; {AGAIN}, or open it with that version"
            )
        return header

    def _array(self, name: str, *dtypes: str) -> Array:
        return self.archive.array(name, dtypes)

    def _read(self, header: dict[str, Json]) -> Recording:
        if SCENARIO not in self.archive.names:
            raise InputError(f"its scenario is missing from the file; {self.archive.again}")
        scenario = self.archive.read(SCENARIO).decode()
        constants = Constants(header["constants"])
        config = self._config(header["config"], constants)
        logs = {name: self._log(name, header["logs"][name], constants) for name in _LOGS}
        checkpoints = self._checkpoints(header)
        ends, checkpoint_ops = self._array("ends", "int64"), self._array("checkpoint_ops", "int64")
        verdicts = {int(op): verdict for op, verdict in header["verdicts"].items()}
        check(verdicts, dict[int, str], "verdicts")
        found_wrongly = {int(op): tuple(page) for op, page in header["found_wrongly"].items()}
        check(found_wrongly, dict[int, tuple[int, int]], "found_wrongly")
        self._fit(logs, ends, checkpoints, checkpoint_ops)
        _check_ops(logs["ops"], config)
        return Recording(
            config,
            logs["ops"],
            logs["outcomes"],
            logs["events"],
            ends,
            checkpoints,
            checkpoint_ops,
            _info(header["info"], scenario),
            verdicts,
            path=self.archive.path,
            found_wrongly=found_wrongly,
            **self._steps(len(ends)),
        )

    def _steps(self, ops: int) -> dict[str, Array]:
        """Read to which steps the ops belong, if it is known."""
        found = {name: self._array(name, dtype) for name, dtype in _OF_STEPS.items()}
        lengths = {len(array) for array in found.values()}
        if len(lengths) > 1 or not lengths <= {0, ops}:
            raise InputError(f"its columns do not fit together; {self.archive.again}")
        return found

    def _checkpoints(self, header: dict[str, Json]) -> Checkpoints:
        checkpoints = Checkpoints()
        checkpoints.constants = Constants(header["state_constants"])
        check(header["checkpoints"], int, "checkpoints")
        check(header["tables"], list[str], "tables")
        checkpoints.count = header["checkpoints"]
        checkpoints.tables = {
            name: Versions.of_arrays(
                self._array(f"state/{number}/places", "uint64"),
                self._array(f"state/{number}/ends", "uint64"),
                self._array(f"state/{number}/blob", "uint8"),
            )
            for number, name in enumerate(header["tables"])
        }
        if not {SMALL, FRAMES} <= {*checkpoints.tables}:
            raise InputError(f"its checkpoints are incomplete; {self.archive.again}")
        return checkpoints

    def _fit(
        self, logs: dict[str, Log], ends: Array, checkpoints: Checkpoints, checkpoint_ops: Array
    ) -> None:
        """Compare the numbers of ops, outcomes, events and checkpoints with each other."""
        ops, outcomes, events = (len(logs[name]) for name in _LOGS)
        fits = len(ends) == ops == outcomes and (ends[-1] if len(ends) else 0) == events
        fits &= len(checkpoint_ops) == checkpoints.count > 0
        for ascending in (ends, checkpoint_ops):
            fits &= not len(ascending) or (ascending[0] >= 0 and bool((np.diff(ascending) >= 0).all()))
        if not fits or checkpoint_ops[0] != 0 or checkpoint_ops[-1] > ops:
            raise InputError(f"its columns do not fit together; {self.archive.again}")

    def _log(self, name: str, tables: Json, constants: Constants) -> Log:
        log = Log(find(KNOWN_LOGS[name], table["type"]) for table in tables)
        for number, (table, described) in enumerate(zip(log.tables, tables, strict=True)):
            if list(table.columns) != list(described["columns"]):
                raise InputError(f"{described['type']} has other fields now; {AGAIN}")
            check(described["count"], int, "a count of records")
            for field, column in table.columns.items():
                how = described["columns"][field]
                aside = {row: decode(value, constants) for row, value in how["aside"]}
                stored = self._array(f"{name}/{number}/{field}", *_UNSIGNED)
                column.load(stored, described["count"], how["words"], aside)
        log.load(self._array(f"{name}/kinds", "uint8"))
        return log

    # The configuration ------------------------------------------------------------

    def _config(self, item: dict[str, Json], constants: Constants) -> MachineConfig:
        hints = record_fields(MachineConfig)
        if sorted(item) != sorted(hints):
            raise InputError(f"the machine's configuration has other fields now; {AGAIN}")
        values = {name: decode(value, constants) for name, value in item.items() if name not in _APART}
        for name, value in values.items():
            check(value, hints[name], f"{name} of the machine")
        config = MachineConfig(**values, kernel=self._kernel(item["kernel"], constants))
        check_bounds(config)
        return config

    def _kernel(self, item: dict[str, Json], constants: Constants) -> Kernel:
        hints = record_fields(Kernel)
        if sorted(item) != sorted(hints):
            raise InputError(f"its kernel has other fields now; {AGAIN}")
        values = {name: decode(item[name], constants) for name in _KERNEL}
        for name, value in values.items():
            check(value, hints[name], f"{name} of the kernel")
        check(item["behaviours"], list[str], "behaviours of the kernel")
        check(item["root_strategy"], str, "root strategy of the kernel")
        check(item["bugs"], list[str], "bugs of the kernel")
        for name in item["behaviours"]:
            find_behaviour(name)
        return Kernel(
            **values,
            design=self._design(item["design"]),
            derivation=self._derivation(item["derivation"]),
            root_strategy=find_root_strategy(item["root_strategy"]),
            sync=self._sync(item["sync"]),
            behaviours=Behaviours(**{name: name in item["behaviours"] for name in CHANGES}),
            bugs=with_bugs(Bugs(), dict.fromkeys(item["bugs"], True)),
        )

    def _sync(self, name: Json) -> SyncPolicy:
        check(name, str, "sync policy")
        if name in self.syncs:
            return self.syncs[name]
        if ":" in name:
            shown = quoted(name)
            raise InputError(
                f"sync policy '{shown}' is not one of mmulab's; "
                f"give syncs={{'{shown}': ..}} to open_recording"
            )
        return find_sync(name)

    def _derivation(self, name: Json) -> Derivation:
        check(name, str, "derivation")
        if name not in self.derivations:
            shown = quoted(name)
            raise InputError(
                f"derivation '{shown}' is not one of mmulab's; "
                f"give derivations={{'{shown}': ..}} to open_recording"
            )
        return self.derivations[name]

    def _design(self, kept: dict[str, Json]) -> RoleDesign:
        """Return the design; a user's own must be given, and be what it was."""
        for key in ("name", "reference", "digest"):
            check(kept[key], str, f"{key} of the design")
        name, reference = quoted(kept["name"]), quoted(kept["reference"])
        known = self.designs if kept["own"] else DESIGNS
        if kept["name"] not in known:
            how = f"--design {reference}" if reference else "--design file.py:Class"
            raise InputError(
                f"design '{name}' is not one of mmulab's; give {how}, "
                f"or designs={{'{name}': ..}} to open_recording"
            )
        design = known[kept["name"]]
        if design.digest != kept["digest"]:
            raise InputError(
                f"design '{name}' ({reference or 'a class of a notebook'}) is no longer the text "
                f"that was recorded; {AGAIN}"
            )
        return design


def _under(path: str, error: InputError) -> str:
    """Return a message with the file's name in front, once."""
    text = str(error)
    return text if text.startswith(f"{path}: ") else f"{path}: {text}"


def _info(item: dict[str, Json], scenario: str) -> Info:
    hints = record_fields(Info)
    if sorted(item) != sorted(name for name in hints if name != "scenario"):
        raise InputError(f"its origin has other fields now; {AGAIN}")
    for name, value in item.items():
        hint = dict[str, str | int | float | bool | None] if name == "options" else hints[name]
        check(value, hint, name)
    return Info(scenario=scenario, **item)


def _check_ops(ops: Log, config: MachineConfig) -> None:
    """Check the fields that every op has, or that mean the same in each."""
    for table in ops.tables:
        limits = {"vcpu": config.vcpus} | ({} if table.kind is SetMemslot else {"size": 9})
        for name, limit in limits.items():
            column = table.columns.get(name)
            numbers = np.zeros(0, np.uint8) if column is None else column.numbers()
            if len(numbers) and not SHIFT <= int(numbers.min()) <= int(numbers.max()) < limit + SHIFT:
                raise InputError(f"{name} of an op {table.kind.__name__} is out of range; {AGAIN}")
