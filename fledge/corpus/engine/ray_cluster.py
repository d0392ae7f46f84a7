"""Units on a Ray cluster: the same units as in `pool.py`, each a task that Ray repeats when its worker or its machine is lost.

Ray brings the machines and nothing else: results lie in the work folder as always, so every machine must see that folder, and
the sources, under the same path (a shared file system), and must have the same Fledge installed. The cluster is there already;
none is started from here. The connection lasts as long as one run of units.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from fledge.core.errors import MachineError
from fledge.core.installing import install_hint
from fledge.corpus.engine.pool import find_here
from fledge.corpus.engine.results import Results
from fledge.corpus.engine.units import Attempt, Done, Enough, Unit, WorkFolder, attempt

_DEATHS = 3
_TASKS_PER_CORE = 2
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A task that Ray itself kills for want of memory is repeated for ever by default.
    "RAY_task_oom_retries": str(_DEATHS),
    # By default a cluster that is gone but not forgotten is waited for 20 times; once takes 41 s.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
}


class RayExecutor:
    """Runs units on the Ray cluster at `address`; "auto" is the one this machine belongs to, or that RAY_ADDRESS names.

    A unit whose worker is lost is repeated three times; then MachineError, as when there is no cluster or no Ray.
    """

    def __init__(self, address: str = "auto") -> None:
        self.address = address

    def run(self, label: str, units: Sequence[Unit], work: WorkFolder, enough: Enough | None = None) -> list[Done | None]:
        work.discard_partials()
        results = Results(units, enough)
        find_here(results, work)
        if not results.are_complete:
            with _connected(self.address) as ray, results.shown(label):
                _run_tasks(ray, results, work)
        return results.in_order()


def _run_tasks(ray: Any, results: Results, work: WorkFolder) -> None:
    task = ray.remote(max_retries=_DEATHS)(attempt)
    waiting = deque(results.missing())
    running: dict[Any, int] = {}
    try:
        while not results.are_complete:
            # A cluster may grow while it works.
            most = max(1, int(_TASKS_PER_CORE * ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < most and results.may_start(waiting[0], most):
                index = waiting.popleft()
                running[task.options(name=results.units[index].label).remote(work, results.units[index])] = index
            for reference in ray.wait(list(running), num_returns=1)[0]:
                index = running.pop(reference)
                came = _get(ray, reference, results.units[index])
                done = came.result(results.units[index])
                work.remember(done)
                results.add(index, done, came.was_found)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _get(ray: Any, reference: Any, unit: Unit) -> Attempt:
    try:
        came: Attempt = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise MachineError(
            f"{unit.label}: its Ray worker was lost {_DEATHS + 1} times or cannot run it: {lines[-1] if lines else type(error).__name__}",
            "see that every machine has the same Fledge, sees the same folders, and has memory enough (`ray status`, `ray summary tasks`)",
        ) from error
    return came


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected while the block lasts; a connection that was there before is used and stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise MachineError("executor `ray` needs the package ray, which is not installed", install_hint("ray")) from error
    # Stdout is for results, but Ray prints there from a thread of its own, such as half a page for each lost worker.
    with contextlib.redirect_stdout(io.StringIO()):
        if ray.is_initialized():
            yield ray
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MachineError(
                f"cannot join a Ray cluster at {address!r}: {error}",
                "start one (`ray start --head`, then `ray start --address=...` on the others), or choose executor=local",
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
