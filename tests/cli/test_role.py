"""``mmulab role``: what it prints, gives back, and refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.cli.main import run
from mmulab.kvm.roles.decoders import PLUGIN_KVM
from mmulab.kvm.roles.history import BACKPORTS, HISTORY, find_role_version

OWN = """
from mmulab.kvm.roles.design import LAYOUT_6_1, RoleDesign
from mmulab.kvm.roles.word import BitField, RoleLayout


class Swapped(RoleDesign):
    name = "swapped"
    layout = RoleLayout((BitField("direct", 1), *(f for f in LAYOUT_6_1.fields if f.name != "direct")))
"""


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert run(["role", *args]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    return json.loads(printed(capsys, *args, "--json"))


def test_decode_shows_fields_trace_and_the_plugins_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "decode", "0x20712", "--kernel", "6.1").splitlines()
    assert lines[0] == "Linux 6.1: layout of 5.19 (84e5ffd045f3)"
    assert lines[1] == "0x20712: l2 4-byte q0 wux !nxe ad"
    fields = {line.split()[1]: line.split() for line in lines[2:-1]}
    assert fields["has_4_byte_gpte"] == ["4", "has_4_byte_gpte", "1"]
    assert fields["access"] == ["10-8", "access", "7"]
    assert fields["guest_mode"] == ["17", "guest_mode", "1"]
    assert list(fields) == list(find_role_version("6.1").layout.shift)
    assert lines[-1] == (
        "  note: plugin_kvm of trace-cmd since 2.9 and of libtraceevent prints '2 q0 wux pae !nxe !wp'; "
        "wrong: has_4_byte_gpte 0 (is 1)"
    )


def test_the_plugin_is_right_before_5_17_and_nothing_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "note" not in printed(capsys, "decode", "0x3785", "--kernel", "5.16")


def test_hexadecimal_words_several_words_and_the_default_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "decode", "20712", "0x20712", "0x3785")
    assert [record["word"] for record in found] == ["0x20712", "0x20712", "0x3785"]
    assert found[0] == found[1]
    assert found[2]["trace"] == "l5 8-byte q0 direct wux nxe ad"
    assert (found[2]["read_as"], found[2]["layout_since"], found[2]["settled"]) == ("Linux 6.1", "5.19", True)
    values = {field["name"]: field["value"] for field in found[2]["fields"]}
    assert values == find_role_version("6.1").layout.unpack(0x3785)
    assert found[2]["plugin"]["prints"] == PLUGIN_KVM.said(0x3785)
    assert found[2]["plugin"]["wrong"] == [{"field": "has_4_byte_gpte", "said": 1, "true": 0}]


def test_bits_of_no_field_and_kernels_without_tracepoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bits 0x800000 are set and belong to no field" in printed(capsys, "decode", "0x823785")[:2000]
    old = printed(capsys, "decode", "0x1e0043", "--kernel", "2.6.28")
    assert "no tracepoint" in old
    assert "plugin_kvm" not in old


def test_a_doubtful_version_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "NOT SETTLED: not read: 5.0.y after 5.0.4" in printed(capsys, "decode", "1", "--kernel", "5.0.9")
    assert "note: 5.15.222 and later" in printed(capsys, "decode", "1", "--kernel", "5.15")


@given(
    st.sampled_from([*(v.since for v in HISTORY), *(b.version.since for b in BACKPORTS.values())]), st.data()
)
def test_encode_gives_back_what_decode_says(kernel: str, data: st.DataObject) -> None:
    layout = find_role_version(kernel).layout
    word = data.draw(st.integers(0, (1 << layout.width) - 1)) & sum(layout.mask.values())
    texts = [f"{name}={value}" for name, value in layout.unpack(word).items()]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("click.echo", said.append)
        assert run(["role", "encode", *texts, "--kernel", kernel]) == 0
    assert said == [hex(word)]


def test_encode_takes_hex_and_leaves_the_rest_0(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "encode", "level=2", "direct=1", "access=0x7", "--kernel", "6.1")
    assert out == "0x782\n"


def test_designs_read_and_write_their_own_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printed(capsys, "encode", "level=5", "glevel=4", "--design", "D1") == "0x100005\n"
    assert "glevel           4" in printed(capsys, "decode", "0x100005", "--design", "glevel")
    own = tmp_path / "own.py"
    own.write_text(OWN)
    assert printed(capsys, "encode", "direct=1", "level=1", "--design", f"{own}:Swapped") == "0x3\n"
    (record,) = as_json(capsys, "decode", "3", "--design", f"{own}:Swapped")
    assert (record["read_as"], record["trace"]) == ("design swapped", "l1 8-byte q0 direct --- !nxe ad")


@pytest.mark.parametrize(
    ("design", "kernel"),
    [
        ("D0", "5.17"),
        ("D0", "5.18"),
        ("D4", "5.19"),
        ("D4", "6.1.192"),
        ("D4", "6.12.117"),
        ("D7", "2.6.32"),
        ("D7", "2.6.34"),
        ("D8", "4.18"),
        ("D8", "5.0"),
    ],
)
@given(data=st.data())
def test_a_design_that_is_a_kernels_word_reads_as_the_kernel(
    design: str, kernel: str, data: st.DataObject
) -> None:
    """All but the title, and the note on later releases of the series asked for."""
    layout = find_role_version(kernel).layout
    word = hex(data.draw(st.integers(0, (1 << layout.width) - 1)))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", said.append)
        for reader in (["--design", design], ["--kernel", kernel]):
            assert run(["role", "decode", word, *reader, "--json"]) == 0
    ours, kernels = (json.loads(text)[0] for text in said)
    assert [field["name"] for field in ours["fields"]] == list(layout.shift)
    titles = {"read_as": "", "note": ""}
    assert ours | titles == kernels | titles


def test_d8_and_5_0_say_pae(capsys: pytest.CaptureFixture[str]) -> None:
    """``KVM_MMU_PAGE_PRINTK`` of 5.0; until 5.1 a set bit meant entries of 8 bytes."""
    (header, *lines), (_, *kernels) = (
        printed(capsys, "decode", "0x1712", *reader).splitlines()
        for reader in (["--design", "D8"], ["--kernel", "5.0"])
    )
    assert header == "design cr4_pae: layout of 4.18 (1313cc2bd8f6)"
    assert lines == kernels
    assert lines[0] == "0x1712: l2 pae q0 wux nxe ad"


def test_a_proposed_design_is_worded_in_todays_names(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = as_json(capsys, "decode", "0x100005", "--design", "D1")
    assert record["trace"] == "l5 8-byte q0 --- !nxe ad"
    assert "layout_since" not in record


def test_diff_of_two_words_names_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    answer = as_json(capsys, "diff", "0x3785", "0x3702")
    assert answer["differ"] == [
        {"name": "level", "bits": "3-0", "a": 5, "b": 2, "hidden": False},
        {"name": "direct", "bits": "7", "a": 1, "b": 0, "hidden": False},
    ]
    lines = printed(capsys, "diff", "0x3785", "0x3702").splitlines()
    assert [line.split() for line in lines[-2:]] == [["3-0", "level", "5", "2"], ["7", "direct", "1", "0"]]
    assert "no field differs" in printed(capsys, "diff", "7", "0x7", "--design", "pre_fix")


def test_diff_says_what_the_trace_hides(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "diff", "20712", "2713").splitlines()
    assert [line.split(maxsplit=4) for line in lines[3:]] == [
        ["3-0", "level", "2", "3"],
        ["13", "cr0_wp", "0", "1", "(the trace hides it)"],
        ["17", "guest_mode", "1", "0", "(the trace hides it)"],
    ]
    alike = printed(capsys, "diff", "20712", "712").splitlines()
    assert alike[-1] == "  note: a trace prints the same for both"
    assert "hides" not in printed(capsys, "diff", "712", "10712", "--kernel", "2.6.28")  # it has no trace


LINE = "kvm_mmu_get_page: sp gen 0 gfn 100 l1 4-byte q0 direct wux nxe ad root 0 sync new"
PLUGINS = "kvm_mmu_get_page: new sp gfn 100 1 q0 direct wux !pae nxe wp root 0 sync"


def test_a_line_of_a_trace_gives_the_word_and_what_it_does_not_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args in ([LINE], LINE.split()):
        (record,) = as_json(capsys, "decode", *args)
        assert (record["word"], record["printed_by"]) == ("0x1791", "the kernel")
        assert record["not_told"][0] == "cr0_wp"
        assert record["may_be_set"] == "0xff06e000"
        values = {field["name"]: field["value"] for field in record["fields"]}
        assert (values["direct"], values["cr0_wp"]) == (1, None)
        assert "plugin" not in record
    lines = printed(capsys, "decode", LINE).splitlines()
    assert ["13", "cr0_wp", "?"] in [line.split() for line in lines]
    assert lines[-1].startswith("  note: the kernel does not print cr0_wp, smep_andnot_wp")


def test_lines_on_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{LINE}\n\nkvm_exit: reason npf\n{PLUGINS}\n20712 0x712\n"))
    assert run(["role", "decode", "-", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [record["word"] for record in json.loads(out)] == ["0x1791", "0x3781", "0x20712", "0x712"]
    assert err == "mmulab: passed over, no role in it: 'kvm_exit: reason npf'\n"


def test_standard_input_without_a_role_names_the_kernel_that_prints_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("sp gfn 4 l1 pae q0 wux nxe ad root 0 sync\n"))
    assert run(["role", "decode", "-"]) == 2
    assert "no line has a role as Linux 6.1 prints it; --kernel 4.18 would" in capsys.readouterr().err


def test_every_role_that_a_run_prints_is_read_back_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "la57-switch-npt-4to5-l0-5", "--events"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "[guest_mode passthrough]" in line]
    (record,) = as_json(capsys, "decode", lines[0])
    assert record["not_told"] == []
    assert record["trace"] in lines[0]
    values = {field["name"]: field["value"] for field in record["fields"]}
    assert (values["guest_mode"], values["passthrough"], values["cr0_wp"]) == (1, 1, 0)


def test_diff_takes_lines_of_a_trace_as_decode_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = LINE.replace("direct wux", "wux")
    given = as_json(capsys, "diff", LINE, other)
    assert [(field["name"], field["a"], field["b"]) for field in given["differ"]] == [("direct", 1, 0)]
    assert "cr0_wp" in given["not_told"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{LINE}\n{other}\n"))
    assert as_json(capsys, "diff", "-") == given
    lines = printed(capsys, "diff", LINE, "0x3711").splitlines()
    assert [line.split() for line in lines[3:4]] == [["7", "direct", "1", "0"]]
    assert lines[-1].startswith("  note: not told, so these may differ: cr0_wp, ")
    assert as_json(capsys, "diff", "7", "7")["not_told"] == []


def test_diff_of_two_kernels_reads_the_word_as_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "diff", "0x3795", "--kernel", "5.16", "--to", "6.1").splitlines()
    starred = [line.split()[1] for line in lines if line.startswith(" *")]
    assert starred == ["gpte_is_8_bytes", "has_4_byte_gpte", "passthrough"]
    assert "  Linux 5.16: l5 8-byte q0 direct wux nxe ad" in lines
    assert "  Linux 6.1: l5 4-byte q0 direct wux nxe ad" in lines
    answer = as_json(capsys, "diff", "0x3795", "0x3785", "--kernel", "5.16", "--to", "6.1")
    assert [(pair["from"]["trace"], pair["to"]["trace"]) for pair in answer] == [
        ("l5 8-byte q0 direct wux nxe ad", "l5 4-byte q0 direct wux nxe ad"),
        ("l5 4-byte q0 direct wux nxe ad", "l5 8-byte q0 direct wux nxe ad"),
    ]


def test_layouts_list_every_change_with_its_commits(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "layouts")
    known = as_json(capsys, "layouts")
    assert [version["since"] for version in known["versions"]] == [version.since for version in HISTORY]
    for version in HISTORY:
        assert f"\n{version.since}: " in f"\n{text}"
        assert all(f"{commit.hash} {commit.subject}" in text for commit in version.commits)
    assert "5.15.222 (not in 5.15.221): 26 bits" in text
    assert "right for the layouts of 4.2, 4.13, 4.18, 5.1, 5.14\n" in text
    assert known["decoders"][0]["reads_rightly"] == ["2.6.32", "2.6.32.16", "2.6.33.7", "2.6.34.14"]


@pytest.mark.parametrize(
    ("args", "mend"),
    [
        (["decode", "zz"], "give a hexadecimal number as 20712"),
        (["decode", "0x100000000"], "Linux 6.1 has 32 bits in its word"),
        (["decode", "0x200000", "--kernel", "2.6.28"], "Linux 2.6.28 has 21 bits in its word"),
        (["decode", "--", "-1"], "has 32 bits"),
        (["decode", "1", "--kernel", "9.9"], "ask for mainline"),
        (["decode", "1", "--design", "nobody"], "the designs are"),
        (["decode", "1", "--design", "D4", "--kernel", "6.1"], "give one of them"),
        (["decode", "0x3785", "zz", "--json"], "give a hexadecimal number as 20712"),
        (["encode", "nxe=1"], "no field 'nxe' in this layout; it has level, has_4_byte_gpte"),
        (["encode", "level=16"], "level=16 does not fit into 4 bits"),
        (["encode", "level"], "give a name and a number as level=2"),
        (["encode", "level=1", "level=2"], "level is given twice"),
        (["diff", "1"], "give a second word"),
        (["diff", "1", "2", "3"], "3 words, expected two"),
        (["diff", "1", "--to", "2.6.27"], "starts with 2.6.28"),
        (["decode", "9" * 5000], "9999'...: give a hexadecimal number as 20712"),
        (["decode", "0x" + "f" * 5000], "ffff'...: give a hexadecimal number as 20712"),
        (["decode", "1", "--kernel", "6." + "9" * 4400], "9999': give a version as 6.1"),
        (["decode", "1", "--kernel", "6.1-rc" + "9" * 4400], "9999': give a version as 6.1"),
        (["decode", "1", "--kernel", "6.01"], "'6.01': give a version as 6.1"),
        (["decode", "1", "--kernel", "2.7"], "there is no Linux 2.7"),
        (["decode", "1", "--kernel", ""], "'': give a version as 6.1"),
        (["encode", "self=1"], "no field 'self' in this layout"),
        (["encode", "=1"], "no field '' in this layout"),
        (["encode", "level=" + "9" * 4400], "give a name and a number as level=2"),
        (["encode", "level=-1"], "level=-1 does not fit into 4 bits"),
    ],
)
def test_bad_input_is_one_line(args: list[str], mend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["role", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert mend in err
