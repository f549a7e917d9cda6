"""Page-modification logging: the processor notes the pages whose D it sets.

Source: Linux 6.1 ``arch/x86/kvm/vmx/vmx.c`` (``vmx_flush_pml_buffer``); SDM 3, 29.3.6.
"""

from __future__ import annotations

from mmulab.kvm.dirty import kvm_vcpu_mark_page_dirty
from mmulab.kvm.state import Vcpu


def vmx_flush_pml_buffer(vcpu: Vcpu) -> None:
    """Mark what the processor has logged since the last exit.

    It fills its buffer downwards, and KVM reads it upwards: the newest comes first.
    No instruction dirties as many pages as there is room for, so it is never full.
    """
    for gfn in reversed(vcpu.pml_buffer):
        kvm_vcpu_mark_page_dirty(vcpu, gfn)
    vcpu.pml_buffer.clear()
