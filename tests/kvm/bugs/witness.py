"""Witness sequences of the bugs, run on a kernel with a bug and without."""

from __future__ import annotations

from pathlib import Path

from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.machine.machine import Machine
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.text import read_scenario

HERE = Path(__file__).parent


class Witness:
    """A run of ``BUG.mmu`` up to its last op.

    Attributes
    ----------
    machine : Machine
        As it is then.
    steps : list of Result
        By number of the op; what a VMM does besides is left out.
    """

    def __init__(self, bug: str, kernel: str | Kernel) -> None:
        scenario = read_scenario(HERE / f"{bug}.mmu")
        used = find_kernel(kernel) if isinstance(kernel, str) else kernel
        runner = Runner(scenario, config=machine_config(scenario, used))
        self.machine: Machine = runner.machine
        by_number: dict[int, Result] = {}
        for result in runner.results():
            if result.text == "teardown":  # only where an op ended the VM before
                break
            by_number[result.index] = result
            if result.index == len(scenario.steps) - 1:
                break
        self.steps = [by_number[number] for number in sorted(by_number) if number >= 0]

    def outcome(self, op: int = -1) -> str:
        """Return how an op ended, and the guest-physical page that its access reached."""
        outcome = self.steps[op].outcome
        said = outcome_str(encode_outcome(outcome))
        if outcome.hpa == -1:
            return said
        return f"{outcome.kind} {outcome.hpa - (self.machine.memory.backing << 12) & ~0xFFF:x}"

    def load(self, gpa: int) -> int:
        """Read 8 bytes of the guest's memory."""
        return self.machine.memory.load64((self.machine.memory.backing << 12) + gpa)
