"""Many files worked on in processes: what is finished is shown, what is refused is said at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from mmulab import pool
from mmulab.cli import signals
from mmulab.cli.progress import progress
from mmulab.errors import InputError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

__all__ = ["each_answer"]


def each_answer(
    run: Callable[[Job], Answer],
    work: Sequence[Job],
    show: Callable[[list[Answer], int], None],
    *,
    jobs: int | None,
    what: str,
    bar: bool,
) -> list[Answer]:
    """Run all jobs and return the answers; a job whose input is refused keeps no other from running.

    Parameters
    ----------
    run : callable
        Of a module, so that another process finds it.
    work : sequence
    show : callable
        Gets the answers and of how many they are, at the end or at an interrupt; unless all are refused.
    jobs : int or None
        Processes; None: one a processor.
    what : str
        What a job is of, in the plural, for the message.
    bar : bool
        Show progress.

    Raises
    ------
    InputError
        The first refusal, with the number of the others, after all is shown.
    """
    answers: list[Answer] = []
    refused: list[InputError] = []

    def show_finished() -> None:
        of = len(work) - len(refused)
        if of:
            show(answers, of)

    with signals.shown(show_finished):
        found = pool.each(partial(_attempt, run), work, jobs or os.cpu_count() or 1)
        for answer in progress(found, len(work), "scenario", show=bar):
            if isinstance(answer, InputError):
                refused.append(answer)
            else:
                answers.append(answer)
    if refused:
        others = f"; {len(refused) - 1} more {what} are refused" if refused[1:] else ""
        raise InputError(f"{refused[0]}{others}")
    return answers


def _attempt(run: Callable[[Job], Answer], job: Job) -> Answer | InputError:
    try:
        return run(job)
    except InputError as error:
        return error
