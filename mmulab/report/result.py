"""The result of a notebook in one sentence, with a small picture if there is one.

The notebook makes both from what it found and shows them in a cell; they travel in
its outputs, as its tables do::

    Result(f"{wrong:,} of {accesses:,} accesses wrong", figure.svg)

A report's first page shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any
from xml.etree import ElementTree

from mmulab.errors import quoted
from mmulab.report.outputs import shown

__all__ = ["LONGEST", "RESULT_MIME", "Result", "harvest"]

RESULT_MIME = "application/vnd.mmulab.result+json"
LONGEST = 200
"""Characters of a sentence."""
LARGEST = 400_000
"""Characters of a picture; what has more is not small."""
_SVG = "{http://www.w3.org/2000/svg}svg"


@dataclass(frozen=True)
class Result:
    """What a notebook found.

    Attributes
    ----------
    sentence : str
        Plain text of one line, for example ``0 of 1,454,812 accesses wrong``.
    picture : str or None
        An SVG, whole and with its namespace; a figure that shows itself as SVG is taken too.
    """

    sentence: str
    picture: str | None = None

    def __post_init__(self) -> None:
        """Take the SVG out of a figure and check both."""
        if not self.sentence.strip() or not self.sentence.isprintable() or len(self.sentence) > LONGEST:
            why = f"a result is one line of at most {LONGEST} characters"
            raise ValueError(f"'{quoted(self.sentence)}': {why}")
        if self.picture is not None:
            object.__setattr__(self, "picture", _svg(self.picture))

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        record = {"sentence": self.sentence, "picture": self.picture}
        # The picture stands somewhere on the page already: here it would be there twice.
        html = f'<p class="result">{escape(self.sentence)}</p>'
        return {RESULT_MIME: record, "text/html": html, "text/plain": self.sentence}


def _svg(picture: Any) -> str:
    """Return the text of an SVG, or of what shows itself as one.

    Raises
    ------
    ValueError
        It is none, or too large.
    """
    bundle = getattr(picture, "_repr_mimebundle_", None)
    svg = getattr(picture, "_repr_svg_", None)
    text = bundle().get("image/svg+xml") if bundle else svg() if svg else picture
    try:
        if not isinstance(text, str) or ElementTree.fromstring(text).tag != _SVG:
            raise ValueError("a result's picture is an SVG with its namespace")
    except ElementTree.ParseError as error:
        raise ValueError(f"a result's picture is no SVG: {error}") from error
    if len(text) > LARGEST:
        raise ValueError(f"a result's picture has {LARGEST} characters at most, not {len(text)}")
    return text


def harvest(notebook: Any) -> Result | None:
    """Return the result that an executed notebook shows, None if it shows none.

    Parameters
    ----------
    notebook : nbformat.NotebookNode

    Raises
    ------
    ValueError
        If there are two.
    """
    found = list(shown(notebook, RESULT_MIME))
    if len(found) > 1:
        raise ValueError("the notebook shows two results; a notebook has one")
    return Result(**found[0]) if found else None
