"""VM, vCPUs and processor: the *op*, and the one function that gives it effect.

:class:`~mmulab.machine.machine.Machine` executes ops (:mod:`~mmulab.machine.op`);
``run`` is the life of one instruction, from entry to exit and again until it is
over; ``processor`` makes its accesses through whatever tables KVM has set up;
``stubs`` says which instruction an op is. ``config`` is all that a run depends on.
"""
