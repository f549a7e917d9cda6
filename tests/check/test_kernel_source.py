"""Reading assertions from a kernel's sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmulab.check.kernel_source import KVM, Place, count_assertions, places
from mmulab.errors import InputError

TEXT = r"""
#define MY_WARN(x) do {	\
	WARN_ON(x); } while (0)
/* BUG_ON(this is a remark) { */
static const char *words[] = { "WARN_ON(", "{" };

static bool __must_check first(struct kvm *kvm, int level)
{
	if (WARN_ON_ONCE(!kvm) || WARN_ON_ONCE(level < 1)) {
		pr_err("BUG_ON( in first {\n");
		return false;	// WARN_ON(x)
	}
#ifdef CONFIG_X86_64
	BUILD_BUG_ON(sizeof(int) != 4);
#else
	BUG();
#endif
	return '{' != level;
}

static int FNAME(second)(struct kvm_vcpu *vcpu,
gpa_t gpa)
{
	lockdep_assert_held_write(&vcpu->kvm->mmu_lock);
	if (KVM_BUG_ON(!gpa, vcpu->kvm))
		return -EIO;
	MY_WARN(gpa);
	return 0;
}
"""


def test_each_macro_is_counted_in_its_function() -> None:
    assert count_assertions("mmu/a.c", TEXT) == {
        Place("mmu/a.c", "first", "WARN_ON_ONCE"): 2,
        Place("mmu/a.c", "first", "BUILD_BUG_ON"): 1,
        Place("mmu/a.c", "first", "BUG"): 1,
        Place("mmu/a.c", "second", "lockdep_assert_held_write"): 1,
        Place("mmu/a.c", "second", "KVM_BUG_ON"): 1,
    }


@pytest.mark.parametrize(
    "macro",
    [
        "BUG",
        "BUG_ON",
        "BUILD_BUG_ON",
        "BUILD_BUG_ON_MSG",
        "KVM_BUG",
        "KVM_BUG_ON",
        "KVM_BUG_ON_DATA_CORRUPTION",
        "KVM_MMU_WARN_ON",
        "MMU_WARN_ON",
        "VM_BUG_ON",
        "WARN",
        "WARN_ON",
        "WARN_ONCE",
        "WARN_ON_ONCE",
        "lockdep_assert_held",
        "lockdep_assert_held_read",
    ],
)
def test_each_macro_of_kvm_is_known_by_its_whole_name(macro: str) -> None:
    text = f"void f(void)\n{{\n\t{macro}(x);\n}}\n"
    assert count_assertions("x86.c", text) == {Place("x86.c", "f", macro): 1}


@pytest.mark.parametrize("call", ["pr_warn(x)", "my_WARN_ON(x)", "WARN_ON", "kvm_vm_bugged(kvm)"])
def test_what_is_none_is_not_counted(call: str) -> None:
    assert count_assertions("x86.c", f"void f(void)\n{{\n\t{call};\n}}\n") == {}


def test_a_file_that_a_kernel_lacks_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / KVM / "mmu").mkdir(parents=True)
    (tmp_path / KVM / "mmu/mmu.c").write_text("void f(void)\n{\n\tBUG();\n}\n")
    found = places(tmp_path, ["mmu/mmu.c", "mmu/none.c"])
    assert found == Counter({Place("mmu/mmu.c", "f", "BUG"): 1})


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernel sources"):
        places(tmp_path, ["mmu/mmu.c"])
    (tmp_path / KVM / "x86.c").mkdir(parents=True)
    with pytest.raises(InputError, match=r"x86\.c: Is a directory"):
        places(tmp_path, ["x86.c"])
