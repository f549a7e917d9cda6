"""Role designs of users: whatever their files do is one line, and what they give is a word or facts."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
from pathlib import Path

import pytest

from mmulab import limits
from mmulab.errors import DesignError, InputError
from mmulab.kvm.roles import foreign
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.word import CpuRole, RoleFacts

HEAD = """\
import signal
from mmulab.kvm.roles.design import LAYOUT_6_1, Passthrough, RoleDesign
from mmulab.kvm.roles.word import BitField, RoleLayout

class X(Passthrough):
    id, name = "X", "x"
"""
FIELDS = "LAYOUT_6_1.fields"


def method(text: str) -> str:
    """Return a design with one method or attribute of its own, on line 7."""
    return f"{HEAD}    {text}\n"


def layout(fields: str) -> str:
    return method(f"layout = RoleLayout({fields})")


AT_IMPORT = {
    "raise": ("raise RuntimeError('boom')", "cannot be loaded: RuntimeError: boom (line 1)"),
    "exit": ("import sys; sys.exit(3)", "cannot be loaded: SystemExit: 3 (line 1)"),
    "keyboard": ("raise KeyboardInterrupt", "cannot be loaded: KeyboardInterrupt (line 1)"),
    "name": ("nowhere", "cannot be loaded: NameError: name 'nowhere' is not defined (line 1)"),
    "recursion": ("def f(): f()\nf()", "cannot be loaded: RecursionError: maximum recursion depth exceeded"),
    "memory": ("raise MemoryError", "cannot be loaded: MemoryError (line 1)"),
    "generator": ("raise GeneratorExit", "cannot be loaded: GeneratorExit (line 1)"),
    "syntax": ("class X(:", "cannot be loaded: SyntaxError: invalid syntax"),
    "nul": ("class X:\0 pass", "cannot be loaded: SyntaxError: source code string cannot contain null bytes"),
    "import": (
        "import no_such_thing",
        "cannot be loaded: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "lines": ("raise ValueError('a\\nb\\x1b[31m')", "cannot be loaded: ValueError: a b\\x1b[31m (line 1)"),
    "evil": (
        "class Evil(Exception):\n    def __str__(self): raise OSError\nraise Evil",
        "cannot be loaded: Evil (line 3)",
    ),
    "empty": ("", "has no X"),
    "value": ("X = 5", "X is no subclass of mmulab.kvm.roles.design.RoleDesign"),
    "class": ("class X: pass", "X is no subclass of mmulab.kvm.roles.design.RoleDesign"),
    "hook": (
        f"{HEAD}    def __init_subclass__(cls): raise OSError('no heirs')",
        "cannot be loaded: OSError: no heirs (line 7)",
    ),
}
ITSELF = {
    "argument": (method("def __init__(self, a): pass"), "X(): TypeError: X.__init__() missing 1 required"),
    "init": (method("def __init__(self): raise RuntimeError('no')"), "X(): RuntimeError: no (line 7)"),
    "no super": (method("def __init__(self): pass"), "X.__init__: it must call super().__init__()"),
    "property": (
        method("layout = property(lambda self: 1 / 0)"),
        "X(): ZeroDivisionError: division by zero (line 7)",
    ),
    "nameless": (method("name = ''"), "name must be 1 to 40 letters"),
    "number": (method("name = 7"), "name must be 1 to 40 letters"),
    "list": (method("name = ['x']"), "name must be 1 to 40 letters"),
    "none": (method("id = None"), "id must be 1 to 40 letters"),
    "long": (method("name = 'x' * 5000"), "name must be 1 to 40 letters"),
    "newline": (method("name = 'a\\nb'"), "name must be 1 to 40 letters"),
    "html": (method("id = '<b>'"), "id must be 1 to 40 letters"),
    "taken": (method("name = 'glevel'"), "name 'glevel' is that of glevel; give the class its own"),
    "taken id": (method("id = 'D4'"), "id 'D4' is that of passthrough; give the class its own"),
    "summary": (method("summary = None"), "summary must be one line of text"),
    "source": (method("source = 'a\\nb'"), "source must be one line of text"),
    "no layout": (method("layout = None"), "layout must be a RoleLayout"),
    "no fields": (layout("()"), "layout has no field 'level'"),
    "no level": (layout(f"tuple(f for f in {FIELDS} if f.name != 'level')"), "layout has no field 'level'"),
    "no invalid": (layout(f"tuple(f for f in {FIELDS} if f.name != 'invalid')"), "no field 'invalid'"),
    "wide": (layout(f"(*{FIELDS}, BitField('more', 9))"), "layout has 41 bits; the word has 32"),
    "twice": (
        layout("(BitField('level', 4), BitField('level', 4))"),
        "field 'level' is there twice (line 7)",
    ),
    "zero": (layout("(BitField('level', 0),)"), "field 'level' has a width of 0 bits; 1 is the least"),
    "negative": (layout("(BitField('', -4),)"), "field '' has a width of -4 bits"),
    "narrow": (layout(f"(BitField('level', 1), *{FIELDS}[1:])"), "X.pack: ValueError: level=4 does not fit"),
    "unknown": (
        layout(f"(*{FIELDS}[:-2], BitField('mine', 3))"),
        "X.pack: ValueError: the field 'mine' is no fact of the MMU's; own_fields must say it",
    ),
    "sync none": (method("sync_ignored = None"), "sync_ignored must be a tuple"),
    "sync text": (method("sync_ignored = 'level'"), "sync_ignored must be a tuple"),
}
METHODS = {
    "pack none": ("def pack(self, f, c): return None", "X.pack: gave None; a role word is an int"),
    "pack text": ("def pack(self, f, c): return 'x'", "X.pack: gave 'x'; a role word is an int"),
    "pack float": ("def pack(self, f, c): return 1.5", "X.pack: gave 1.5; a role word is an int"),
    "pack bool": ("def pack(self, f, c): return True", "X.pack: gave True; a role word is an int"),
    "pack list": ("def pack(self, f, c): return [1]", "X.pack: gave a list; a role word is an int"),
    "pack negative": ("def pack(self, f, c): return -1", "X.pack: gave -0x1; its layout has 32 bits"),
    "pack wide": ("def pack(self, f, c): return 1 << 32", "X.pack: gave 0x100000000; its layout has 32 bits"),
    "pack huge": ("def pack(self, f, c): return 1 << 99999", "X.pack: gave 0x80000000"),
    "pack same": ("def pack(self, f, c): return 0", "X.facts: says level 0 of the word that pack gave"),
    "pack changing": (
        "n = 0\n    def pack(self, f, c): self.n += 1; return super().pack(f, c) ^ self.n << 24",
        "X.pack: gave two words of the same facts",
    ),
    "pack raises": (
        "def pack(self, f, c): return 1 / 0",
        "X.pack: ZeroDivisionError: division by zero (line 7)",
    ),
    "pack exits": ("def pack(self, f, c): raise SystemExit(0)", "X.pack: SystemExit: 0 (line 7)"),
    "pack interrupts": (
        "def pack(self, f, c): raise KeyboardInterrupt",
        "X.pack: KeyboardInterrupt (line 7)",
    ),
    "pack recursion": ("def pack(self, f, c): return self.pack(f, c)", "X.pack: RecursionError: maximum"),
    "pack memory": ("def pack(self, f, c): raise MemoryError", "X.pack: MemoryError (line 7)"),
    "pack slip": ("def pack(self, f, c): return super().pak(f, c)", "X.pack: AttributeError: 'super' object"),
    "pack arguments": ("def pack(self): return 1", "X.pack: TypeError: "),
    "pack no method": ("pack = 5", "X.pack: TypeError: 'int' object is not callable"),
    "own none": ("def own_fields(self, f, c): return None", "X.own_fields: gave None; a dict of fields'"),
    "own text": ("def own_fields(self, f, c): return {'level': 'x'}", "X.own_fields: gave 'level': 'x'"),
    "own wide": (
        "def own_fields(self, f, c): return {'level': 99}",
        "X.pack: ValueError: level=99 does not fit",
    ),
    "child none": ("def child(self, p, **of): return None", "X.child: gave None; a role word is an int"),
    "child negative": ("def child(self, p, **of): return -5", "X.child: gave -0x5; its layout has 32 bits"),
    "child raises": ("def child(self, p, **of): raise StopIteration", "X.child: StopIteration (line 7)"),
    "facts none": ("def facts(self, r): return None", "X.facts: gave None; RoleFacts are wanted"),
    "facts tuple": ("def facts(self, r): return (1, 2)", "X.facts: gave a tuple; RoleFacts are wanted"),
    "facts access": (
        "def facts(self, r): return super().facts(r)._replace(access=9)",
        "X.facts: gave access=0x9",
    ),
    "facts text": (
        "def facts(self, r): return super().facts(r)._replace(direct='x')",
        "X.facts: gave direct='x'",
    ),
    "facts raises": ("def facts(self, r): raise OSError('x')", "X.facts: OSError: x (line 7)"),
    "invalid none": (
        "def invalidated(self, r): return None",
        "X.invalidated: gave None; a role word is an int",
    ),
}
BAD = {
    **{f"import {name}": row for name, row in AT_IMPORT.items()},
    **ITSELF,
    **{name: (method(text), says) for name, (text, says) in METHODS.items()},
}


def own(folder: Path, text: str) -> str:
    source = folder / "own.py"
    source.write_text(text, "utf-8")
    return f"{source}:X"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_design_is_one_line_with_its_file_class_and_method(name: str, tmp_path: Path) -> None:
    text, says = BAD[name]
    reference = own(tmp_path, text)
    with pytest.raises(DesignError) as caught:
        find_design(reference)
    line = str(caught.value)
    assert line.startswith(f"role design {reference!r}: ")
    assert says in line
    assert line.isprintable()
    assert len(line) < 500 + len(reference)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("while True: pass", "runs longer than 1 s"),
        (method("def pack(self, f, c):\n        while True: pass"), "X.pack: runs longer than 1 s"),
    ],
)
def test_what_never_ends_is_one_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FOREIGN_SECONDS", 1)
    reference = own(tmp_path, text)
    with pytest.raises(DesignError) as caught:
        find_design(reference)
    assert str(caught.value) == f"role design {reference!r}: {says}, the limit"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DesignError, match="cannot be loaded: SyntaxError: "):
        find_design(f"{source}:X")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "fifo.py")
    for name, says in (("folder.py", "a folder"), ("fifo.py", "a FIFO"), ("none.py", "no such file")):
        with pytest.raises(InputError, match=f"role design .*{name}: {says}"):
            find_design(f"{tmp_path / name}:X")
    for name in ("\0.py:X", ":X", ".:X", "os:", "a b:X"):
        with pytest.raises(InputError, match="role design "):
            find_design(name)


FORGETFUL = method("def pack(self, f, c): return super().pack(f._replace(access=7), c)")


def test_a_design_knows_its_file_and_what_stood_in_it(tmp_path: Path) -> None:
    reference = own(tmp_path, FORGETFUL)
    design = find_design(reference)
    assert design.reference == reference
    assert design.digest == hashlib.sha256(FORGETFUL.encode()).hexdigest()
    assert {(built_in.reference, built_in.digest) for built_in in DESIGNS.values()} == {("", "")}


def test_an_inherited_id_is_not_the_designs_own(tmp_path: Path) -> None:
    text = "from mmulab.kvm.roles.design import Passthrough\nclass X(Passthrough):\n    name = 'x'\n"
    assert find_design(own(tmp_path, text)).id == ""


def test_what_a_file_prints_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_design(own(tmp_path, "print('hello')\n" + HEAD))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "hello\n")


def test_a_repr_of_the_users_is_not_asked(tmp_path: Path) -> None:
    design = find_design(own(tmp_path, method("def __repr__(self): raise RuntimeError")))
    assert repr(design) == "<X x: 27 bits>"


LEVEL_5 = method("def pack(self, f, c): return None if f.level == 5 else super().pack(f, c)")
CPU = CpuRole(level=4, valid=1)


def facts_of(level: int) -> RoleFacts:
    return DESIGNS["passthrough"].facts(0)._replace(level=level)


def test_a_design_that_fails_here_and_there_is_found_out_there(tmp_path: Path) -> None:
    design = find_design(own(tmp_path, LEVEL_5))
    assert design.pack(facts_of(4), CPU) == 4
    with pytest.raises(DesignError, match=r"X\.pack: gave None"):
        design.pack(facts_of(5), CPU)


INTERRUPTED = (
    HEAD
    + """
    armed = False

    def facts(self, role):
        if self.armed:
            signal.raise_signal(signal.SIGINT)
        return super().facts(role)
"""
)


def test_a_real_interrupt_goes_through_the_border(tmp_path: Path) -> None:
    """The signal comes while the user's method runs, and is nothing that it raised."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    design = find_design(own(tmp_path, INTERRUPTED))
    design.armed = True  # type: ignore[attr-defined]
    try:
        with pytest.raises(KeyboardInterrupt):
            design.facts(3)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_design_goes_to_another_process_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = find_design(own(tmp_path, FORGETFUL))
    sent = pickle.dumps(design)
    assert pickle.loads(sent) is design, "a process that was forked has it already"
    monkeypatch.setattr(foreign, "_LOADED", {})
    other = pickle.loads(sent)
    assert (other.reference, other.digest) == (design.reference, design.digest)
    assert other.pack(facts_of(4), CPU) == design.pack(facts_of(4), CPU)
    own(tmp_path, FORGETFUL + "# changed")
    monkeypatch.setattr(foreign, "_LOADED", {})
    with pytest.raises(InputError, match="its file has changed since it was loaded"):
        pickle.loads(sent)


def test_the_built_in_designs_have_no_border() -> None:
    for design in DESIGNS.values():
        assert type(design).__module__ == "mmulab.kvm.roles.design"
        assert type(design).pack.__module__ == "mmulab.kvm.roles.design"
