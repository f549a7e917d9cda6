"""Scenarios by the grammar itself: every op with arguments of the right kind, on every mode and host."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.scenario.grammar import FORMS
from mmulab.scenario.runner import run
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, MODES, QUIRKS
from mmulab.scenario.text import parse_scenario

_WORDS = {
    "MODE": st.sampled_from(["s", "u", "sac"]),
    "SIZE": st.sampled_from(["1", "4", "8", "1000", "200000"]),
    "STATE": st.sampled_from(["on", "off"]),
    "PROT": st.sampled_from(["0", "1", "3"]),
    "KEY": st.sampled_from(sorted(CPUID_DEFAULTS)),
}
_SMALL = st.sampled_from((0, 1, 2, 4, 5, 8, 0x3FF, 0x400, 10000))
_ADDRESSES = st.sampled_from(
    (0, 0x400, 0xFFC, 0xFF8, 0x1000, 0x10000, 0x10400, 0x20000, 0x30000, 0x40000000, 0x40000FFE)
)
_EDGES = st.sampled_from((0xFFFFFFFF, 1 << 32, 1 << 39, 0x7FFFFFFFF000, 1 << 47, (1 << 64) - 1, 0xFFFF << 48))
_NUMBER = st.one_of(_SMALL, _ADDRESSES, _EDGES, st.integers(0, 1 << 32), st.integers(0, (1 << 64) - 1)).map(
    "{:x}".format
)


@st.composite
def op_lines(draw: st.DrawFn) -> str:
    """One op with as many arguments as it has."""
    name = draw(st.sampled_from(sorted(FORMS)))
    words = [draw(_WORDS.get(arg.name, _NUMBER)) for arg in FORMS[name].args.values()]
    vcpu = draw(st.sampled_from(("", "", "", "@1 ")))
    return " ".join([f"{vcpu}{draw(st.sampled_from(('', '', '', '!', '?')))}{name}", *words])


def _pairs(known: dict[str, int]) -> st.SearchStrategy[str]:
    value = st.sampled_from(("0", "1", "20", "24", "28", "30", "34", "39"))
    return st.dictionaries(st.sampled_from(sorted(known)), value, max_size=3).map(
        lambda pairs: " ".join(f"{key}={value}" for key, value in pairs.items())
    )


@st.composite
def scenario_texts(draw: st.DrawFn) -> str:
    """A scenario with tables, a few entries and up to a dozen ops."""
    lines = ["mmulab-scenario 1", f"mode {draw(st.sampled_from(sorted(MODES)))}"]
    lines.append(f"host {draw(st.sampled_from(('amd', 'intel')))} {draw(_pairs(HOST_DEFAULTS))}")
    pairs = draw(_pairs(CPUID_DEFAULTS))
    lines += [f"cpu {pairs}"] if pairs else []
    lines += draw(st.lists(st.sampled_from(sorted(QUIRKS)).map("quirk {}".format), max_size=1))
    lines += ["root 10000"] if draw(st.booleans()) else []
    lines += ["alloc 20000", "alloc 30000"]
    for size in draw(st.lists(st.sampled_from((4, 8)), max_size=4)):
        lines.append(f"m{size} {draw(_ADDRESSES):x} {draw(_NUMBER)[-2 * size :]}")
    return "\n".join([*lines, "ops", *draw(st.lists(op_lines(), max_size=12)), "end", ""])


def run_text(text: str) -> None:
    """Read and run a scenario; an error that is no ``InputError`` carries the text as its note."""
    try:
        run(parse_scenario(text))
    except InputError:
        pass
    except BaseException as error:
        error.add_note(text)
        raise


@settings(
    deadline=None,
    database=None,
    derandomize=False,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(scenario_texts())
def _each(text: str) -> None:
    run_text(text)


def run_choices(data: bytes) -> None:
    """Run the scenario that Hypothesis makes of `data`, its choices."""
    _each.hypothesis.fuzz_one_input(data)
