"""One guest under every policy, stopped while tables are out of sync, to draw what remembers them."""

from __future__ import annotations

from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.machine.machine import Machine
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.widgets.bookkeeping import bookkeeping_picture
from mmulab.widgets.scene_svg import Svg
from mmulab.workload.small_os import KERNEL, PAGE, WRITE, SmallOs
from mmulab.x86.mode import PT_GLOBAL_MASK
from mmulab.x86.regs import X86_CR4_PGE

__all__ = ["drawn", "stopped", "writes_tables"]


def writes_tables(mode: str = "64") -> Scenario:
    """Return a guest that changes entries of two tables of a process and of a global one of its kernel."""
    os = SmallOs(mode, source="bookkeeping", host={"npt": 0})
    pages = [os.page() for _ in range(4)]
    process = os.new_space()
    window = os.layout.direct + 8 * os.builder.mem
    users = [os.layout.user, os.layout.user + os.layout.large]
    for number, gva in enumerate(users):
        os.map(process, gva, pages[number], WRITE)
    os.map(process, window, pages[2], KERNEL | PT_GLOBAL_MASK)
    os.switch(process)
    os.load_cr4(MODES[mode].cr4 | X86_CR4_PGE)
    for gva in users:
        os.read(gva)
    os.write_kernel(window, 1)
    for gva in users:
        os.map(process, gva + PAGE, pages[3], WRITE)
    os.map(process, window + PAGE, pages[3], KERNEL | PT_GLOBAL_MASK)
    return os.scenario()


def stopped(policy: SyncPolicy, kernel: Kernel = LINUX_6_1) -> Machine:
    """Return the machine after the guest's last op, before anything flushes."""
    scenario = writes_tables()
    runner = Runner(scenario, config=machine_config(scenario, kernel.with_(sync=policy)))
    last = len(scenario.steps) - 1
    for result in runner.results():
        if result.index == last:
            break
    return runner.machine


def drawn(policy: SyncPolicy, kernel: Kernel = LINUX_6_1) -> Svg:
    """Return the picture of a policy's bookkeeping."""
    return bookkeeping_picture(stopped(policy, kernel), title=f"{policy}: three tables written, no flush yet")
