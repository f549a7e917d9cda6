"""The reading order: every notebook of the project, once."""

from __future__ import annotations

from mmulab import paths
from mmulab.report.reading import reading


def test_every_notebook_has_its_place() -> None:
    entries = reading()
    assert sorted(entries) == sorted(path.stem for path in paths.notebooks())
    parts = [entry.part for entry in entries.values()]
    assert list(entries) != sorted(entries), "an order to read, not that of names"
    assert next(iter(entries)) == "step_a_fault"
    assert all(parts)
    for entry in entries.values():
        assert entry.about.endswith((".", "?", "it."))
        assert len(entry.about) < 130, "one sentence"
        assert entry.why


def test_every_notebook_is_listed_once() -> None:
    text = (paths.checkout() / "notebooks" / "reading.yaml").read_text("utf-8")
    assert text.count("- name:") == len(reading())
