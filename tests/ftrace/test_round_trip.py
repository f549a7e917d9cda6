"""Events of every kind and range, written in each of the texts and read again: the same events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.ftrace.layout import PLUGIN, Layout
from mmulab.ftrace.layouts import LAYOUTS
from mmulab.ftrace.lines import Place
from mmulab.ftrace.reader import read_text, read_trace
from mmulab.ftrace.trace import TracedEvent
from mmulab.ftrace.writer import TEXTS, format_recording, format_trace, recorded_events
from mmulab.kvm.roles.decoders import DECODERS
from mmulab.kvm.roles.history import HISTORY
from mmulab.scenario.record import record
from mmulab.scenario.text import read_scenario

SEQUENCES = Path(__file__).parents[2] / "data/sequences"
DATA = Path(__file__).parents[2] / "data/ftrace"
_NEW = [version for version in HISTORY if version.wording and "byte" in (version.trace_str(0) or "")]
_OLD = [version for version in HISTORY if version.wording and "byte" not in (version.trace_str(0) or "")]
_WORDS = st.integers(0, (1 << 32) - 1)
_U64 = st.one_of(st.integers(0, 5), st.integers(0, (1 << 64) - 1))
_TEXTS = {
    "text": st.sampled_from(["PF excp", "npf", "EPT_VIOLATION", "prot64", "real"]),
    "word": st.sampled_from(["vmcb", "read", "unsatisfied-read", "KVM_EXIT_MMIO"]),
    "bytes": st.lists(st.integers(0, 255), min_size=1, max_size=15).map(lambda b: bytes(b).hex(" ")),
    "role": st.builds(lambda v, w: v.trace_str(w & v.layout.used_bits), st.sampled_from(_NEW), _WORDS),
    "old_role": st.one_of(
        st.builds(lambda v, w: v.trace_str(w & v.layout.used_bits), st.sampled_from(_OLD), _WORDS),
        st.builds(lambda tool, w: tool.said(w), st.sampled_from(DECODERS), _WORDS),
    ),
    "exception": st.sampled_from([0, 1, 6, 8, 13, 14, 18, 29]),
    "flags": _WORDS,
    "d": st.one_of(st.integers(-22, 5), st.integers(0, (1 << 32) - 1)),
}


def _field(spec: str) -> st.SearchStrategy[Any]:
    from mmulab.ftrace.forms import FORMS

    if spec in _TEXTS:
        return _TEXTS[spec]
    if spec == "pointer" or spec not in FORMS:
        return _U64
    texts = FORMS[spec].pattern.strip("()").split("|")
    first = -1 if spec == "u" else 0
    return st.integers(first, first + len(texts) - 1)


def _specs(layout: Layout) -> dict[str, str]:
    from string import Formatter

    found: dict[str, str] = {}
    for _, name, spec, _ in Formatter().parse(layout.template):
        if name:
            found.setdefault(name, spec or "word")
    return found


_PLACES = st.builds(
    Place,
    st.sampled_from(["qemu-system-x86", "CPU 0/KVM", "tdxvm-13694", "<...>", "a"]),
    st.integers(1, 4194304),
    st.just(-1),
    st.integers(0, 8191),
    st.just("....."),
)


@st.composite
def events(draw: st.DrawFn) -> TracedEvent:
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    layout = draw(st.sampled_from(LAYOUTS[name]))
    fields = {field: draw(_field(spec)) for field, spec in _specs(layout).items()}
    time = draw(st.integers(0, 10**9)) * 1000
    return TracedEvent(time, draw(_PLACES), name, fields)


def _told(event: TracedEvent, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return of an event what a text of it tells: libtraceevent's plugin leaves fields out."""
    plugin = any(one.by == PLUGIN and set(one.fields) == set(fields) for one in LAYOUTS[event.name])
    return {name: value for name, value in event.fields.items() if name in fields or not plugin}


@settings(max_examples=150, deadline=None)
@given(st.lists(events(), min_size=1, max_size=12), st.sampled_from(TEXTS))
def test_events_are_the_same_after_a_round_trip(made: list[TracedEvent], text: str) -> None:
    trace = read_text("\n".join(format_trace(made, text)))
    assert not trace.counts.unreadable, trace.counts.samples
    assert not trace.counts.unread, trace.counts.samples
    found = list(trace.events())
    for before, after in zip(made, found, strict=True):
        assert (after.time, after.name) == (before.time, before.name)
        assert after.place[:4] == before.place[:4]
        assert after.fields == _told(before, after.fields)


@pytest.mark.parametrize("name", ["B2", "B16", "B25", "B33"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_run_of_the_model_reads_as_itself(name: str, text: str) -> None:
    recording = record(read_scenario(SEQUENCES / f"{name}.mmu"))
    written = list(recorded_events(recording, text))
    trace = read_text("\n".join(format_recording(recording, text)))
    assert not trace.counts.unknown
    for before, after in zip(written, trace.events(), strict=True):
        assert (after.time, after.name, after.place[:2]) == (before.time, before.name, before.place[:2])
        assert after.fields == {field: before.fields[field] for field in after.fields}
        assert text != "trace" or after.fields == before.fields


@pytest.mark.parametrize("text", TEXTS)
def test_a_real_trace_is_the_same_after_a_round_trip(text: str) -> None:
    trace = read_trace(str(DATA / "shadow-686-nonpae-part.trace.xz"))
    begin = [trace.event(number) for number in range(6000)]
    again = read_text("\n".join(format_trace(begin, text)))
    for before, after in zip(begin, again.events(), strict=True):
        assert (after.time, after.name, after.place[:4]) == (before.time, before.name, before.place[:4])
        if text == "trace":
            assert after == before
        else:
            assert after.fields == {field: before.fields.get(field) for field in after.fields}
