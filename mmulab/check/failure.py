"""What a wrong MMU makes the model itself raise, and the finding that it is."""

from __future__ import annotations

import traceback
from pathlib import Path

from mmulab.check.finding import Finding, FindingKind
from mmulab.scenario.runner import Runner

FAILURES = (AssertionError, LookupError, RuntimeError, ValueError)
"""What a wrong design makes the model itself raise.

The model checks what Linux checks: where the kernel would stop at a ``BUG_ON``
or follow a stale pointer, there is an assertion, a lookup of an spte, page or
frame that is not there, a way down that goes in circles (``RecursionError``), and
a value that the word has no room for. That is the design's verdict, not an error
of the program. So is :class:`~mmulab.errors.DesignError`: a method of a user's
design, loaded from its file, failed. Not among them are ``TypeError`` and
``AttributeError``, which tell of a slip in a design that was made in Python and
deserve their traceback. ``NotImplementedError`` and
:class:`~mmulab.errors.InputError` itself are subclasses of these, but say that something
could not be run, and are raised on; only where the default design runs the same
scenario to its end has a guest gone astray under a wrong one, and executes what
is no instruction of its own.
"""


def failure(runner: Runner, error: Exception) -> Finding:
    """Return the finding that the model failed; its name is the failure and the kernel's function."""
    index, text = runner.at
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if "kvm" in Path(frame.filename).parts]
    where = frames[-1].name if frames else "machine"
    name = f"{type(error).__name__} in {where}"
    return Finding(FindingKind.FAILURE, name, index, text, str(error) or "the model's own check failed")
