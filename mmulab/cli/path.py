"""The type of arguments and options that name a file or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmulab.files import check_named


class _PathType(click.ParamType[Path]):
    """A name becomes a path; an empty one would stand for the current folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        check_named(value)
        return Path(value)


PATH = _PathType()
