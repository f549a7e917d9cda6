"""Objects show themselves in a notebook and in a terminal."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from mmulab.conform.compare import Level, compare
from mmulab.conform.recording import read_recording
from mmulab.kvm.guest_walk import walk_addr_generic
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.spte import shadow_format
from mmulab.machine.view import guest_walk
from mmulab.report.page import remote_references
from mmulab.trace.recording import Recording
from mmulab.widgets.display import GpteView, RoleView, SpteView
from tests.widgets.conftest import UNSYNC

DESIGN = DESIGNS["passthrough"]
FORMAT = shadow_format(40)


@pytest.fixture
def shown(unsync: Recording) -> dict[str, object]:
    """One of each object, by name."""
    machine = unsync.after(10).machine
    vcpu = machine.kvm.vcpus[0]
    page = next(sp for sp in machine.kvm.pages.values() if sp.level == 1)
    return {
        "role": DESIGN.facts(page.role),
        "page": page,
        "walk": walk_addr_generic(vcpu, vcpu.mmu, 0x8010022000, 0).walk,
        "fault": walk_addr_generic(vcpu, vcpu.mmu, 0x7000000000, 4).walk,
        "guest": guest_walk(machine, 0x8010022000),
        "recording": unsync,
        "comparison": compare(read_recording(UNSYNC), Level.MMU),
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("role", ["has_4_byte_gpte", "l1 g8 q0 uwx"]),
        ("page", ["shadow page in frame 0x", "parents"]),
        ("walk", ["walk of 0x8010022000 R → pa 0x22000", "<td>4</td>", "22063"]),
        ("fault", ["walk of 0x7000000000 U → page fault 0x4 U"]),
        ("guest", ["gpa 0x22000", "gfn 0x26", "4level"]),
        ("recording", ["kvm_mmu_set_spte", "checkpoints", "passthrough, parity"]),
        ("comparison", ["agrees", "ops that agree", "58 of 58"]),
    ],
)
def test_html(shown: dict[str, object], name: str, says: list[str]) -> None:
    html = shown[name]._repr_html_()  # type: ignore[attr-defined]
    assert ET.fromstring(html).tag == "table"
    assert remote_references(html) == []
    assert [text for text in says if text not in html] == []


def test_walk_reads_well_in_a_terminal(shown: dict[str, object]) -> None:
    assert repr(shown["walk"]).startswith(
        "<Walk of 0x8010022000 R: l4 20067, l3 21067, l2 26067, l1 22063 -> pa"
    )
    assert repr(shown["fault"]).endswith("-> page fault 0x4 U>")


def test_words() -> None:
    role = DESIGN.layout.pack(level=2, quadrant=1, access=7)
    view = RoleView(DESIGN, role, DESIGN.layout.pack(level=2, access=7))
    assert repr(view) == f"role {role:#x}: access=wux  quadrant=1 (▶ was 0)  level=2"
    assert repr(GpteView(0x100067, 4)) == "gpte 0x100067: gfn=100  D=1  A=1  U=1  W=1  P=1"
    for word in (view, SpteView(FORMAT, 0x8300E67), GpteView(0x67)):
        assert ET.fromstring(word._repr_svg_()).tag.endswith("svg")
    assert "mmu_present=1" in repr(SpteView(FORMAT, 0x8300E67))
