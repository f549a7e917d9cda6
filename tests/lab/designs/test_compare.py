"""Designs compared: verdicts, the page wrongly shared, the missing bit, what each costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.derivation import copied
from mmulab.kvm.roles.design import DESIGNS, Passthrough, RoleDesign
from mmulab.kvm.roles.root_strategy import shadow
from mmulab.kvm.roles.word import CpuRole, RoleFacts
from mmulab.lab.cases.build import LOWER, UPPER, plain_guest
from mmulab.lab.cases.run import run_case
from mmulab.lab.cases.table import Case, find_cases
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs.compare import Comparison, DesignCell, compare
from mmulab.scenario.builder import ScenarioBuilder
from tests.lab.forgetful import forgetting

CORRECT = ("glevel", "passthrough_levels", "target_level", "passthrough", "cpu_mode", "cpu_mode_passthrough")
LA57_NPT = {"la57-switch-npt-4to5-l0-5", "la57-switch-npt-5to4-l0-5"}
MODES = ("32", "pae", "64")
SHADOWED = {f"mixed-modes{l2}-l0-{l0}" for l2 in ("", "-l2") for l0 in (4, 5)}
"""One guest without TDP in every mode; it goes through all rights, too."""
REVEALED = {
    "has_4_byte_gpte": SHADOWED | {"mixed-halves-32"},
    "quadrant": {f"mixed-{rule}-32" for rule in ("wp", "smep", "smap", "access", "halves")},
    "access": {f"mixed-access-{mode}" for mode in MODES},
    "efer_nx": {"mixed-npt-nx-l0-4", "mixed-npt-nx-l0-5"},
    "cr0_wp": {f"mixed-wp-{mode}" for mode in MODES} | SHADOWED,
    "smep_andnot_wp": {f"mixed-smep-{mode}" for mode in MODES} | SHADOWED,
    "smap_andnot_wp": {f"mixed-smap-{mode}" for mode in MODES} | SHADOWED,
    "passthrough": LA57_NPT,
}
"""By field of 6.1's word: the cases among `mixed-*` and the LA57 switches that are wrong without it."""
HIDDEN = ("smm", "guest_mode", "ad_disabled")
"""Fields that none of these cases reveals.

``smm``: the cases `smm-*` do, see ``test_cases_smm.py``. ``guest_mode``: L1 and L2 pages of one gfn and
otherwise equal roles map the same memory, so no access of the guest's can tell them apart here; in Linux it
keeps L1's private memslots from L2 (``kvm_faultin_pfn``), which the model has not, and lets dirty logging by
PML treat L2's pages apart, which only the VMM sees. ``ad_disabled``: recordings of nested EPT reveal it, see
below.
"""


def wrong_cells(found: Comparison, name: str) -> set[str]:
    return {cell.case.name for cell in found.cells if cell.design.name == name and cell.first_wrong}


@pytest.fixture(scope="module")
def switches() -> Comparison:
    return compare(list(DESIGNS), find_works(["la57-switch-*"]))


def test_the_word_before_the_fix_fails_the_nested_switch_and_no_later_one_does(switches: Comparison) -> None:
    wrong = {name: wrong_cells(switches, name) for name in DESIGNS}
    assert wrong == {name: LA57_NPT if name in ("pre_fix", "cr4_pae") else set() for name in DESIGNS}


def test_the_access_the_page_and_the_missing_bit_are_shown(switches: Comparison) -> None:
    cell = switches.cell("pre_fix", "la57-switch-npt-4to5-l0-5")
    wrong, shared = cell.first_wrong, cell.collision
    assert wrong is not None
    assert shared is not None
    assert (wrong.op, wrong.gva, wrong.expected, wrong.reached) == (8, 0x3000, UPPER, LOWER)
    default = DESIGNS["passthrough"]
    assert (shared.gfn, shared.made_op, shared.op, shared.differ) == (0x14, 0, 7, ("passthrough",))
    assert (default.facts(shared.made).passthrough, default.facts(shared.wanted).passthrough) == (True, False)
    assert DESIGNS["pre_fix"].facts(shared.shared).level == 5


def test_historic_designs_are_told_when_a_case_lies_after_them(switches: Comparison) -> None:
    plain = compare(
        ["glevels", "cr4_pae", "passthrough"], find_works(["shadow-32-l0-4", "npt-64-l2-64-l0-4"])
    )
    time = {(c.design.id, c.case.name): c.in_its_time for c in (*plain.cells, *switches.cells)}
    assert time["D7", "shadow-32-l0-4"]
    assert not time["D7", "npt-64-l2-64-l0-4"], "nested NPT came after 2.6.34"
    assert not time["D7", "la57-switch-shadow-4to5-l0-5"]
    assert time["D8", "la57-switch-shadow-4to5-l0-5"]
    assert not time["D8", "la57-switch-npt-4to5-l0-5"], "hosts with five levels shadow NPT since 5.15"
    assert all(found for (design, _), found in time.items() if design not in ("D7", "D8"))


@pytest.fixture(scope="module")
def forgetful() -> Comparison:
    designs = [forgetting(name) for name in (*REVEALED, "direct", *HIDDEN)]
    return compare(designs, find_works(["mixed-*", "la57-switch-npt-*"]))


@pytest.mark.parametrize("field", REVEALED)
def test_a_forgotten_field_is_marked_on_the_right_cells(forgetful: Comparison, field: str) -> None:
    assert wrong_cells(forgetful, f"no_{field}") == REVEALED[field]


@pytest.mark.parametrize("field", [name for name in REVEALED if name != "quadrant"])
def test_the_missing_bit_is_the_forgotten_one(forgetful: Comparison, field: str) -> None:
    for name in REVEALED[field]:
        shared = forgetful.cell(f"no_{field}", name).collision
        assert shared is not None
        # Who does not know 4-byte entries does not split their tables either.
        assert shared.differ == (("quadrant",) if name == "mixed-halves-32" else (field,)), name


def test_forgetting_direct_stops_the_model_wherever_there_is_a_direct_map(forgetful: Comparison) -> None:
    """A direct page is taken for one that shadows a table, where no memslot is: Linux would follow NULL."""
    wrong = wrong_cells(forgetful, "no_direct")
    assert {"mixed-direct-pae", *SHADOWED, *LA57_NPT} <= wrong
    assert not wrong & {f"mixed-access-{mode}" for mode in MODES}
    seen = forgetful.cell("no_direct", "mixed-direct-pae").first_wrong
    assert seen is not None
    assert (seen.op, seen.expected) == (2, 0x5000)
    assert "the MMU fails its own checks" in seen.seen


def test_quadrants_matter_as_soon_as_a_directory_spans_more_than_one(forgetful: Comparison) -> None:
    cell = forgetful.cell("no_quadrant", "mixed-wp-32")
    assert cell.collision is not None
    assert cell.collision.differ == ("quadrant",)
    assert cell.first_wrong is not None
    assert cell.first_wrong.seen == "the access faults again and again, and KVM never mends it"


@pytest.mark.parametrize("field", HIDDEN)
def test_none_of_these_cases_reveals_them(forgetful: Comparison, field: str) -> None:
    assert wrong_cells(forgetful, f"no_{field}") == set()


def test_a_recording_reveals_that_ad_disabled_is_forgotten() -> None:
    works = find_works(["conformance/6.1.192/nested-ept-host-noad/ept-accessed-dirty-noad"])
    found = compare([forgetting("ad_disabled"), "passthrough"], works)
    (name,) = (case.name for case in works)
    wrong = found.cell("no_ad_disabled", name).first_wrong
    assert wrong is not None
    assert wrong.wanted.startswith("vmexit ")
    assert found.cell("passthrough", name).first_wrong is None


def test_modes_in_the_key_lose_sharing_where_pages_serve_two_modes() -> None:
    (work,) = works = find_works(["conformance/6.1.192/sh/mode-switch"])
    found = compare(["D4", "D5", "D6"], works)
    costs = {
        c.design.id: (c.measures.duplicated, c.measures.sharing_lost, c.measures.coarsest)
        for c in found.cells
    }
    assert costs == {"D4": (0, 0, "passthrough"), "D5": (4, 4, "passthrough"), "D6": (4, 4, "passthrough")}
    assert found.cell("cpu_mode", work.name).measures.apart.alone["efer_lma"] == 4
    assert "efer_lma" not in found.idle_fields(DESIGNS["cpu_mode"])
    assert "cr4_la57" in found.idle_fields(DESIGNS["cpu_mode"])


def test_sharing_is_measured_against_a_design_that_is_right_on_all_works() -> None:
    """The word before 2.6.35 makes the fewest pages of all, because it shares what it must not."""
    found = compare(["D4", "D5", "D7"], find_cases(["mixed-wp-32", "mixed-modes-l0-4", "shadow-32-l0-4"]))
    assert {cell.measures.coarsest for cell in found.cells} == {"passthrough"}
    lost = {d.id: sum(cell.measures.sharing_lost for cell in found.of(d)) for d in found.designs}
    assert lost["D4"] == 0 < lost["D5"]
    assert lost["D7"] < 0


def test_sums_over_works_are_those_of_the_cells(switches: Comparison) -> None:
    design = DESIGNS["passthrough"]
    cells = switches.of(design)
    assert len(cells) == len(switches.works) == 6
    assert switches.apart(design).pairs == sum(cell.measures.apart.pairs for cell in cells)
    assert switches.apart(design).alone["passthrough"] == len(LA57_NPT)
    assert "passthrough" not in switches.idle_fields(design)


def test_what_is_wrong_under_the_default_design_too_is_not_the_designs_fault() -> None:
    found = compare(["D0", "D4"], find_works(["nonpt-shadow-32-l2-np-l0-4"]))
    assert [(cell.verdict, cell.as_default, cell.collision) for cell in found.cells] == [
        ("kernel", True, None)
    ] * 2


def test_records_are_json(switches: Comparison) -> None:
    records = json.loads(json.dumps(switches.records()))
    assert len(records) == len(DESIGNS) * 6
    record = next(r for r in records if (r["design"], r["case"]) == ("pre_fix", "la57-switch-npt-5to4-l0-5"))
    assert (record["design_id"], record["verdict"], record["base_bits"], record["spare_bits"]) == (
        "D0",
        "wrong",
        26,
        6,
    )
    assert {"op", "text", "expected", "reached", "seen"} <= set(record["first_wrong"])
    assert record["collision"]["differ"] == ["passthrough"]
    assert record["shadow_pages"] > 0
    assert (record["possible_pages"], record["fits_write_track"]) == (290, True)
    assert all((r["first_wrong"] is None) == (r["verdict"] == "correct") for r in records)


def test_the_matrix_marks_wrong_cells(switches: Comparison) -> None:
    html = switches._repr_html_()
    assert html.count("<b>wrong at op 8</b>") == 2 * len(LA57_NPT)
    assert html.count("(not of its time)") == len(LA57_NPT)


def test_a_copied_quadrant_is_found_on_a_case_and_on_a_boot() -> None:
    works = find_works(["mixed-halves-32", "stream/boot-686-nonpae"], records=12_000)
    found = compare(["D4"], works, kernel=LINUX_6_1.with_(derivation=copied))
    case, boot = found.cells
    assert case.first_wrong is not None
    assert (case.first_wrong.expected, case.first_wrong.reached) == (LOWER, UPPER)
    assert case.collision is not None
    assert case.collision.differ == ("quadrant",)
    assert boot.first_wrong is not None
    assert (boot.first_wrong.op, boot.first_wrong.gva) == (9_657, 0xC1E3D000)
    assert boot.collision is not None
    assert boot.collision.differ == ("quadrant",)
    assert compare(["D4"], works).cell("passthrough", works[1].name).first_wrong is None


def test_the_merged_bit_is_too_little_where_all_roots_are_shadow_pages() -> None:
    """Two portals above another level: glevel tells them apart, one bit does not."""
    kernel = LINUX_6_1.with_(root_strategy=shadow)
    found = compare(CORRECT, find_works(["portal-switch-npt-l0-5"]), kernel=kernel)
    assert [cell.design.id for cell in found.cells if cell.first_wrong] == ["D4"]
    shared = found.cell("passthrough", "portal-switch-npt-l0-5").collision
    assert shared is not None
    assert (shared.reference.name, shared.differ) == ("glevel", ("glevel",))
    levels = [shared.reference.layout.get(word, "glevel") for word in (shared.made, shared.wanted)]
    assert levels == [2, 4], "above PAE's directories, then above the 4-level root"


class Stops(Passthrough):
    """A user's design with a fault of some kind, met when a page of level 1 is looked at."""

    name = "stops"
    error: Exception = AssertionError("BUG_ON")

    def facts(self, role: int) -> RoleFacts:
        found = super().facts(role)
        if found.level == 1:
            raise self.error
        return found


def stopping(error: Exception) -> RoleDesign:
    design = Stops()
    design.error = error
    return design


CASE = "shadow-64-l0-4"


@pytest.mark.parametrize(
    "error", [AssertionError(), KeyError("sptep"), ValueError("too wide"), RecursionError()]
)
def test_a_design_that_stops_the_model_is_wrong_and_no_crash(error: Exception) -> None:
    (cell,) = compare([stopping(error)], find_works([CASE])).cells
    assert cell.first_wrong is not None
    assert (cell.first_wrong.op, cell.first_wrong.expected, cell.first_wrong.gva) == (0, LOWER, 0x40000000)
    if not isinstance(error, RecursionError):
        assert type(error).__name__ in cell.first_wrong.seen


@pytest.mark.parametrize(
    "error", [TypeError("slip"), AttributeError("slip"), NotImplementedError("op"), KeyboardInterrupt()]
)
def test_a_slip_in_a_design_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        compare([stopping(error)], find_works([CASE]))


def test_a_guest_that_is_led_astray_is_wrong() -> None:
    """Under a wrong design a fetch may end where no instruction is; the scenario is good all the same."""
    (cell,) = compare([stopping(InputError("bytes 00 are not modelled"))], find_works([CASE])).cells
    assert cell.first_wrong is not None
    assert cell.first_wrong.seen == "the guest is led astray (bytes 00 are not modelled)"


def test_a_bad_scenario_is_bad_input_under_any_design() -> None:
    builder = ScenarioBuilder("64")
    builder.root(0x10000).map(0x40000000, 0x100000).value(4, 0x100000, 0xC0DE0304).op("xc s 40000000")
    for design in ("D4", "D5"):
        with pytest.raises(InputError, match="are not modelled; put a NOP"):
            run_case(builder.build(), design)


def test_a_design_that_stops_a_recording_is_wrong_there() -> None:
    (cell,) = compare([stopping(AssertionError())], find_works(["conformance/6.1.192/sh/basic-64"])).cells
    assert cell.first_wrong is not None
    assert (cell.first_wrong.op, cell.first_wrong.text) == (0, "rd s 4 8000000000")


class Tenth(Passthrough):
    """A notebook's cell: nothing of CR0.WP."""

    name = "tenth"

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        """Return the word as if CR0.WP were always 1."""
        return super().pack(facts._replace(cr0_wp=True), cpu)


def test_a_design_object_goes_wherever_a_name_does() -> None:
    scenario = plain_guest("64", 4)
    assert run_case(scenario, Tenth()).machine.kvm.config.kernel.design.name == "tenth"
    found = compare([Tenth(), "D4"], find_works(["mixed-wp-64", "mixed-access-64"]))
    assert wrong_cells(found, "tenth") == {"mixed-wp-64"}


def test_a_notebooks_design_runs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tenth, "__module__", "__main__")
    found = compare([Tenth()], find_works(["mixed-wp-64", "mixed-wp-pae"]), jobs=2)
    assert wrong_cells(found, "tenth") == {"mixed-wp-64", "mixed-wp-pae"}


def test_a_design_from_a_file_runs_in_this_process(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(
        "from mmulab.kvm.roles.design import Passthrough\n\n\n"
        "class Own(Passthrough):\n    id, name = 'X', 'own'\n"
    )
    found = compare([f"{source}:Own"], find_cases(["shadow-32-*"]), jobs=2)
    assert [cell.verdict for cell in found.cells] == ["correct"] * len(found.works)


def test_more_processes_find_the_same() -> None:
    works = find_works(["la57-switch-npt-*", "shadow-64-l0-4"])
    one, two = (compare(["D0", "D5"], works, jobs=jobs) for jobs in (1, 2))
    assert one.records() == two.records()
    assert two.of(DESIGNS["cpu_mode"]), "cells have this process's designs"


def test_progress_is_told_work_by_work() -> None:
    seen: list[Sequence[DesignCell]] = []
    works = find_works(["shadow-32-l0-4", "shadow-64-l0-4"])
    found = compare(["D4", "D5"], works, progress=seen.append)
    assert [cell for row in seen for cell in row] == list(found.cells)
    assert [{cell.case.name for cell in row} for row in seen] == [{work.name} for work in works]


def test_names_must_be_there_and_differ() -> None:
    with pytest.raises(InputError, match="'passthrough' is there 2 times"):
        compare(["D4", "passthrough"], find_works([CASE]))
    nameless = type("Nameless", (Passthrough,), {"name": ""})()
    with pytest.raises(InputError, match="has no name"):
        compare([nameless], find_works([CASE]))
    with pytest.raises(InputError, match="the comparison has none"):
        compare(["D4"], find_works([CASE])).cell("D4", "elsewhere")


def test_works_by_name() -> None:
    assert [work.name for work in find_works(["all"])] == [case.name for case in find_cases([])]
    names = [
        work.name for work in find_works(["conformance/6.1.192/sh/mode-*", "shadow-57-*", "shadow-57-l0-5"])
    ]
    assert names == ["conformance/6.1.192/sh/mode-switch", "shadow-57-l0-5"]
    more = "conformance-more/6.12.117/smm/smm-fuzz-32-mix-03"
    assert [work.name for work in find_works([more])] == [more]
    assert "stream/boot-686-nonpae" in [work.name for work in find_works(["stream/*"])]
    with pytest.raises(InputError, match=r"case 'conformance/6\.1\.192/sh/none'"):
        find_works(["conformance/6.1.192/sh/none"])


def test_a_recording_is_judged_by_its_outcomes() -> None:
    recorded = Case("r", "", "", recording="conformance/6.1.192/sh/mode-switch")
    (good,) = compare(["D4"], [recorded]).cells
    assert good.first_wrong is None
    wp = Case("r", "", "", recording="conformance/6.1.192/sh/cr0-wp-64")
    (bad,) = compare([forgetting("cr0_wp")], [wp]).cells
    assert bad.first_wrong is not None
    assert bad.first_wrong.wanted.startswith("exc vec=e err=3 ")
    assert bad.collision is not None
    assert bad.collision.differ == ("cr0_wp",)


@pytest.mark.slow
def test_the_whole_matrix() -> None:
    found = compare(list(DESIGNS), find_works(["all"]), jobs=2)
    spoiled = {cell.case.name for cell in found.cells if cell.first_wrong and cell.as_default}
    assert spoiled == {c.case.name for c in found.of(DESIGNS["passthrough"]) if c.first_wrong}
    for name in CORRECT:
        assert wrong_cells(found, name) == spoiled, name
    assert wrong_cells(found, "pre_fix") == spoiled | LA57_NPT
    assert wrong_cells(found, "cr4_pae") == spoiled | LA57_NPT
    in_time = {c.case.name for c in found.of(DESIGNS["glevels"]) if c.in_its_time and not c.as_default}
    # CR0.WP was missing in its own time: 3dbe141595fa, 2.6.35.
    assert wrong_cells(found, "glevels") & in_time == {f"mixed-wp-{mode}" for mode in MODES}
