"""Progress of long work in a notebook: a line that counts, and is gone when the work is done."""

from __future__ import annotations

from IPython.display import clear_output, display

__all__ = ["Progress"]


class _Line:
    """A line of text as a cell's output."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Progress:
    """Counts up to `total` below the running cell; as a context it clears the line at its end.

    Nothing of it stays in the notebook, so an executed one does not depend on the machine's speed.

    Parameters
    ----------
    total : int
    unit : str
        What is counted, in the plural.
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.unit = unit

    def __enter__(self) -> Progress:
        self._handle = display(self._line(0), display_id=True)
        return self

    def __call__(self, done: int, more: str = "") -> None:
        """Show that `done` of the total are done, and what `more` there is to say."""
        if self._handle is not None:
            self._handle.update(self._line(done, more))

    def __exit__(self, *error: object) -> None:
        clear_output()

    def _line(self, done: int, more: str = "") -> _Line:
        return _Line(f"{done:,} of {self.total:,} {self.unit}" + (f": {more}" if more else ""))
