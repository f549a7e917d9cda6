"""Recordings as files: one zip archive with a header, the logs' columns and the checkpoints.

Members: ``recording.json`` (format and version first, configuration, how the
columns are to be read), ``scenario.mmu`` (the scenario as text, where there is
one), and arrays in numpy's own format.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError
from mmulab.kvm.roles.derivation import DERIVATIONS, Derivation
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.machine.config import MachineConfig
from mmulab.trace.checkpoints import Checkpoints
from mmulab.trace.codec import Constants, Json, class_of, decode, encode, name_of
from mmulab.trace.columns import Log
from mmulab.trace.recording import Info, Recording
from mmulab.trace.versions import Versions

FORMAT = 1
SUFFIX = ".mmr"
HEADER, SCENARIO = "recording.json", "scenario.mmu"
AGAIN = "record it again"
_LOGS = ("ops", "outcomes", "events")
_APART = ("design", "derivation")

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
    path = Path(path)
    constants = Constants()
    arrays: dict[str, Array] = {"ends": recording.ends, "checkpoint_ops": recording.checkpoint_ops}
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
        "constants": constants.encoded,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            _write(archive, HEADER, json.dumps(header).encode())
            _write(archive, SCENARIO, scenario.encode())
            for name, array in arrays.items():
                _write(archive, f"{name}.npy", _npy(array))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); name another file"
        ) from error


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
    derivation = config.derivation.name
    if not config.design.name or not derivation:
        raise ValueError("a recording keeps design and derivation by name: give them one")
    return {
        **{name: encode(value, constants) for name, value in values.items()},
        "design": config.design.name,
        "derivation": derivation,
    }


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
) -> Recording:
    """Open a recording.

    Parameters
    ----------
    path : str or pathlib.Path
    designs, derivations : mapping, optional
        Those that mmulab does not know, by the names under which the recording keeps them.

    Raises
    ------
    InputError
        No such file; cut or damaged; of another format; its scenario or another member is missing; a
        design that nobody knows.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).read(
                {**DESIGNS, **(designs or {})}, {**DERIVATIONS, **(derivations or {})}
            )
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: cut or damaged, or no recording; copy it again, or {AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive

    def read(self, designs: Mapping[str, RoleDesign], derivations: Mapping[str, Derivation]) -> Recording:
        header = self._header()
        try:
            return self._read(header, designs, derivations)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.path}: not as mmulab writes recordings ({error!r}); {AGAIN}") from error

    def _header(self) -> Json:
        try:
            header = json.loads(self.archive.read(HEADER))
            found, version = header["format"], header["version"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: not a recording: no {HEADER} as mmulab writes it") from error
        if found != FORMAT:
            raise InputError(
                f"{self.path}: format {found} of mmulab {version}, this mmulab reads format {FORMAT}; "
                f"{AGAIN}, or open it with that version"
            )
        return header

    def _member(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except KeyError as error:
            what = "its scenario" if name == SCENARIO else name
            raise InputError(f"{what} is missing from the file; copy it again, or {AGAIN}") from error

    def _array(self, name: str) -> Array:
        buffer = io.BytesIO(self._member(f"{name}.npy"))
        array: Array = np.lib.format.read_array(buffer, allow_pickle=False)
        return array

    def _read(
        self, header: Json, designs: Mapping[str, RoleDesign], derivations: Mapping[str, Derivation]
    ) -> Recording:
        scenario = self._member(SCENARIO).decode()
        constants = Constants(header["constants"])
        config = _config(header["config"], constants, designs, derivations)
        logs = {name: self._log(name, header["logs"][name], constants) for name in _LOGS}
        checkpoints = Checkpoints()
        checkpoints.constants = Constants(header["state_constants"])
        checkpoints.count = header["checkpoints"]
        checkpoints.tables = {
            name: Versions.of_arrays(
                *(self._array(f"state/{number}/{part}") for part in ("places", "ends", "blob"))
            )
            for number, name in enumerate(header["tables"])
        }
        ends, checkpoint_ops = self._array("ends"), self._array("checkpoint_ops")
        counts = [len(logs[name]) for name in _LOGS]
        fits = len(ends) == counts[0] == counts[1] and (ends[-1] if len(ends) else 0) == counts[2]
        if not fits or len(checkpoint_ops) != checkpoints.count:
            raise InputError(f"its columns do not fit together; copy it again, or {AGAIN}")
        return Recording(
            config,
            logs["ops"],
            logs["outcomes"],
            logs["events"],
            ends,
            checkpoints,
            checkpoint_ops,
            Info(scenario=scenario, **header["info"]),
            {int(op): verdict for op, verdict in header["verdicts"].items()},
        )

    def _log(self, name: str, tables: Json, constants: Constants) -> Log:
        log = Log(class_of(table["type"]) for table in tables)
        for number, (table, described) in enumerate(zip(log.tables, tables, strict=True)):
            if list(table.columns) != list(described["columns"]):
                raise InputError(f"{described['type']} has other fields now; {AGAIN}")
            for field, column in table.columns.items():
                how = described["columns"][field]
                aside = {row: decode(value, constants) for row, value in how["aside"]}
                stored = self._array(f"{name}/{number}/{field}")
                column.load(stored, described["count"], how["words"], aside)
        log.load(self._array(f"{name}/kinds"))
        return log


def _config(
    item: Json,
    constants: Constants,
    designs: Mapping[str, RoleDesign],
    derivations: Mapping[str, Derivation],
) -> MachineConfig:
    for what, known in (("design", designs), ("derivation", derivations)):
        if item[what] not in known:
            raise InputError(
                f"{what} {item[what]!r} is unknown here; give it to open_recording as "
                f"{what}s={{{item[what]!r}: ..}}"
            )
    values = {name: decode(value, constants) for name, value in item.items() if name not in _APART}
    return MachineConfig(**values, design=designs[item["design"]], derivation=derivations[item["derivation"]])
