"""The stepper's controls lead where they say."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.report.page import remote_references
from mmulab.trace.recording import Recording
from mmulab.trace.search import Grain
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.session import KEPT, Session
from mmulab.widgets.stepper import Stepper


def read_only(event: ev.Event) -> bool:
    return isinstance(event, ev.kvm_mmu_set_spte) and not event.spte & 2


@pytest.fixture
def stepper(unsync: Recording) -> Stepper:
    return Stepper(
        unsync, breakpoints={"read-only": lambda e: isinstance(e, ev.kvm_mmu_set_spte) and not e.spte & 2}
    )


def shown(stepper: Stepper) -> bool:
    """Whether the body is the panels of the moment at hand."""
    return bool(stepper.body.value == panels_html(Session(stepper.session.recording, at=stepper.at).panels()))


def test_buttons_step_by_the_grain(stepper: Stepper) -> None:
    assert stepper.previous.disabled
    stepper.next.click()
    assert stepper.at == 1
    stepper.grain.value = Grain.FAULT
    stepper.next.click()
    assert isinstance(stepper.look.event, ev.kvm_page_fault)
    assert shown(stepper)
    first = stepper.at
    stepper.next.click()
    stepper.previous.click()
    assert stepper.at == first
    stepper.grain.value = Grain.OPERATION
    stepper.next.click()
    assert stepper.look.event is None
    assert shown(stepper)


def test_slider_goes_anywhere(stepper: Stepper) -> None:
    stepper.slider.value = 300
    assert stepper.at == 300
    assert shown(stepper)
    assert "moment 300 of" in stepper.density.value
    stepper.slider.value = stepper.session.last
    assert stepper.next.disabled


def test_search_finds_and_says_when_not(stepper: Stepper, unsync: Recording) -> None:
    stepper.what.value = "spte-gfn"
    stepper.argument.value = "101"
    stepper.find_next.click()
    event = stepper.look.event
    assert isinstance(event, ev.kvm_mmu_set_spte)
    assert event.gfn == 0x101
    assert stepper.slider.value == stepper.at
    stepper.find_previous.click()
    assert "gfn is mapped 101: none before this moment" in stepper.message.value
    stepper.argument.value = "x<y"
    stepper.find_next.click()
    assert "x&lt;y" in stepper.message.value
    assert isinstance(stepper.look.event, ev.kvm_mmu_set_spte)


def test_breakpoint_of_the_readers_own(stepper: Stepper) -> None:
    stepper.what.value = "breakpoint read-only"
    stepper.find_next.click()
    assert isinstance(stepper.look.event, ev.kvm_mmu_set_spte)
    assert not stepper.look.event.spte & 2
    with pytest.raises(InputError, match="breakpoint 'other' is unknown; there are: read-only"):
        stepper.session.run("other")


def test_play_goes_on_and_stops_at_the_end(stepper: Stepper) -> None:
    stepper.play.value += 1
    assert stepper.at == 1
    stepper.goto(stepper.session.last)
    stepper.play.playing = True
    stepper.play.value = 0
    assert stepper.at == stepper.session.last
    assert not stepper.play.playing


def test_followed_address(stepper: Stepper) -> None:
    stepper.goto(100)
    stepper.address.value = "8010022000"
    assert stepper.look.address == 0x8010022000
    assert "0x8010022000" in stepper.body.value
    stepper.address.value = "zz"
    assert "no hexadecimal number" in stepper.message.value
    stepper.address.value = ""
    assert stepper.session.address is None


def test_still_picture_is_the_step_at_hand(stepper: Stepper) -> None:
    stepper.goto(67)
    bundle = stepper._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert remote_references(bundle["text/html"]) == []
    assert "event 60" in bundle["text/html"]
    assert repr(stepper).startswith("<Stepper at moment 67 of")


def test_session_keeps_a_few_looks(unsync: Recording) -> None:
    session = Session(unsync)
    for number in range(KEPT + 20):
        session.goto(number)
        assert session.look().number == number
    assert len(session._looks) == KEPT
    with pytest.raises(InputError, match="the recording has 0 to"):
        session.goto(len(unsync))
