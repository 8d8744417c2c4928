"""Run independent jobs in several single-threaded processes, with one progress bar for all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.timing import bar_interval

Errors = dict[str, str]


class Job(NamedTuple):
    """A call of a module-level function.

    Attributes:
        name: unique name.
        cost: approximate duration, in any unit common to all jobs.
        function: function to call.
        arguments: its arguments.
    """

    name: str
    cost: float
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run(jobs: Sequence[Job], processes: int, title: str) -> tuple[dict[str, Any], Errors]:
    """Run jobs in order; a failing job is reported and does not stop the others.

    Args:
        jobs: independent jobs.
        processes: number of processes; 1 runs the jobs in this process.
        title: title of the progress bar.

    Returns:
        Results of the jobs, and errors of those that failed, by name.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the processes are stopped first.
    """
    done: dict[str, Any] = {}
    errors: Errors = {}
    if not jobs:
        return done, errors
    form = "{l_bar}{bar}| {elapsed} gone, {remaining} left, {postfix}"
    bar = tqdm(
        total=sum(job.cost for job in jobs), desc=title, bar_format=form, dynamic_ncols=True, mininterval=bar_interval()
    )
    with bar:
        bar.set_postfix_str(f"0 of {len(jobs)} done")
        for job, value, error in _finished(jobs, processes):
            if error is None:
                done[job.name] = value
            else:
                errors[job.name] = error
                bar.write(f"{title}: {job.name} failed: {error}", file=sys.stderr)
            bar.set_postfix_str(
                f"{len(done)} of {len(jobs)} done" + (f", {len(errors)} failed" if errors else ""), refresh=False
            )
            bar.update(job.cost)
    return done, errors


def _finished(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any, str | None]]:
    """Yield each job as it ends, with its result or its error."""
    if processes == 1:
        for job in jobs:
            yield (job, *_called(job))
        return
    context = multiprocessing.get_context("spawn")
    with _stopping(ProcessPoolExecutor(min(processes, len(jobs)), context, initializer=_begin)) as pool:
        waiting = {pool.submit(_called, job): job for job in jobs}
        for future in as_completed(waiting):
            broken = future.exception()
            if broken is None:
                yield (waiting[future], *future.result())
            else:  # the process died, usually for lack of memory, or could not start the job
                yield waiting[future], None, f"{type(broken).__name__}: {broken}"


def _called(job: Job) -> tuple[Any, str | None]:
    try:
        return job.function(*job.arguments), None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno})"


@contextlib.contextmanager
def _stopping(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """Yield the pool; if the block is left early, stop its processes at once."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _begin() -> None:
    """Initialise a new process: one thread, Ctrl-C left to the parent, and exit when the parent exits."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
