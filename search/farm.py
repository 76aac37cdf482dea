"""Where proposals are evaluated: in this process, in processes of this machine, or on a Ray cluster. The results are the same.

Workers only compute: they are handed the evaluator and the context once, proposals one by one, and send numbers back. A worker ignores
Ctrl-C, which its parent answers, and ends when its parent does, however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import import_module
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from ..compiler.children import ChildContext
from ..compiler.errors import MissingExtraError, NeaptideError, SourceError
from .engine import Context, Proposal

FARMS = ("processes", "ray")
MOST_WORKERS = 8
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`values` of the proposal at `position` of those given, and the seconds it took."""

    position: int
    values: dict[str, float]
    seconds: float


class Farm(Protocol):
    """Evaluates proposals, several at a time, in any order."""

    workers: int

    def run(self, proposals: Sequence[Proposal], started: Callable[[int], None]) -> Iterator[Evaluated]:
        """Each proposal's values as they come; `started` is called with a position when its evaluation begins.

        Raises `NeaptideError` with the worker's message when an evaluation fails or a worker dies.
        """
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


@contextmanager
def open_farm(kind: str, workers: int | None, evaluator: Any, context: Context) -> Iterator[Farm]:
    """A farm for `evaluator`. `kind`: "processes" or "ray"; `workers`: how many at once, 0 or None for as many as are worth it.

    Evaluators that are `cheap` always run in this process. In workers the context has no oracle and no constraints: what an
    architecture costs is known before it is evaluated.
    """
    if kind not in FARMS:
        raise SourceError(f"there is no farm {kind!r}; there are {', '.join(FARMS)}")
    count = workers or available_cores()
    farm: Farm
    if getattr(evaluator, "cheap", False) or (kind == "processes" and count == 1):
        farm = InProcess(evaluator, context)
    else:
        away: Any = replace(context, oracle=None, constraints=None, options=dict(context.options))  # pyright: ignore[reportArgumentType]
        payload = pickle.dumps((evaluator, away), protocol=pickle.HIGHEST_PROTOCOL)
        farm = RayFarm(payload, workers or 0) if kind == "ray" else Processes(payload, count)
    try:
        yield farm
    finally:
        farm.close()


def available_cores() -> int:
    """Cores this process may use, at most `MOST_WORKERS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(MOST_WORKERS, len(affinity(0)) if affinity else os.cpu_count() or 1)


class InProcess:
    """One after the other, here."""

    workers = 1

    def __init__(self, evaluator: Any, context: Context):
        self._evaluator, self._context = evaluator, context

    def run(self, proposals: Sequence[Proposal], started: Callable[[int], None]) -> Iterator[Evaluated]:
        for position, proposal in enumerate(proposals):
            started(position)
            values, seconds = _timed(self._evaluator, proposal, self._context)
            yield Evaluated(position, values, seconds)

    def close(self) -> None:
        pass


class Processes:
    """Processes of this machine, each a fresh interpreter that holds the evaluator and its data."""

    def __init__(self, payload: bytes, workers: int):
        self.workers = workers
        self._payload = payload
        self._free: list[tuple[connection.Connection, SpawnProcess]] = []
        self._all: list[tuple[connection.Connection, SpawnProcess]] = []

    def run(self, proposals: Sequence[Proposal], started: Callable[[int], None]) -> Iterator[Evaluated]:
        waiting = list(enumerate(proposals))[::-1]
        busy: dict[connection.Connection, tuple[int, SpawnProcess]] = {}
        while waiting or busy:
            while waiting and len(busy) < self.workers:
                position, proposal = waiting.pop()
                pipe, process = self._free.pop() if self._free else self._begun()
                started(position)
                with _heard(process):
                    pipe.send(proposal)
                busy[pipe] = (position, process)
            for pipe in connection.wait(list(busy)):
                assert isinstance(pipe, connection.Connection)
                position, process = busy.pop(pipe)
                with _heard(process):
                    answer = pipe.recv()
                self._free.append((pipe, process))
                yield Evaluated(position, *_answered(answer))

    def close(self) -> None:
        for _, process in self._all:
            process.terminate()
        for pipe, process in self._all:
            process.join(PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self._all, self._free = [], []

    def _begun(self) -> tuple[connection.Connection, SpawnProcess]:
        context = ChildContext()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._all.append((ours, process))
        with _heard(process):
            ours.send_bytes(self._payload)
        return ours, process


@contextmanager
def _heard(process: SpawnProcess) -> Iterator[None]:
    """Say how a worker ended when it can be neither written to nor read from."""
    try:
        yield
    except (EOFError, OSError) as error:
        process.join(PATIENCE_S)
        why = {
            -9: "; the system was short of memory: give fewer --workers and --resume",
            1: "; a script that calls search needs `if __name__ == '__main__':` around it, or workers=1",
        }.get(process.exitcode or 0, "; --resume tries again")
        raise NeaptideError(f"a worker process ended with code {process.exitcode} while it evaluated a proposal{why}") from error


class RayFarm:
    """Tasks on a Ray cluster: the one of RAY_ADDRESS, the one this process has joined, or a new one on this machine.

    Every machine needs Neaptide and, for trained weights, the search's folder at the same path. `workers`: tasks at once, 0 for one
    for each core of the cluster.
    """

    def __init__(self, payload: bytes, workers: int):
        self._ray = ray = _ray()
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(address=os.environ.get("RAY_ADDRESS") or None, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._key, self._payload = blake2b(payload, digest_size=16).hexdigest(), ray.put(payload)
        self._task = ray.remote(num_cpus=1, max_retries=2)(_ray_evaluate)

    def run(self, proposals: Sequence[Proposal], started: Callable[[int], None]) -> Iterator[Evaluated]:
        waiting = list(enumerate(proposals))[::-1]
        busy: dict[Any, int] = {}
        while waiting or busy:
            while waiting and len(busy) < self.workers:
                position, proposal = waiting.pop()
                started(position)
                busy[self._task.remote(self._key, [self._payload], proposal)] = position
            done, _ = self._ray.wait(list(busy), num_returns=1)
            for reference in done:
                position = busy.pop(reference)
                try:
                    answer = self._ray.get(reference)
                except self._ray.exceptions.RayError as error:
                    raise NeaptideError(
                        f"a task on the Ray cluster failed: {str(error).splitlines()[-1]}; --resume tries it again"
                    ) from error
                yield Evaluated(position, *_answered(answer))

    def close(self) -> None:
        if self._mine:
            self._ray.shutdown()


# ---- in a worker ----------------------------------------------------------------------------------------------------------------


def _serve(pipe: connection.Connection) -> None:
    """A worker process: the payload first, then proposals until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        evaluator, context = pickle.loads(pipe.recv_bytes())
        while True:
            pipe.send(_answer(evaluator, pipe.recv(), context))
    except (EOFError, BrokenPipeError):
        return


_LOADED: dict[str, tuple[Any, Context]] = {}  # a Ray worker's evaluator and context, by the digest of what it was sent


def _ray_evaluate(key: str, payload: list[Any], proposal: Proposal) -> tuple[str, Any, Any]:
    """`payload`: a reference in a list, which Ray then leaves where it is until the worker asks."""
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = pickle.loads(_ray().get(payload[0]))
    evaluator, context = _LOADED[key]
    return _answer(evaluator, proposal, context)


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "--farm ray") from error


def _answer(evaluator: Any, proposal: Proposal, context: Context) -> tuple[str, Any, Any]:
    """("done", values, seconds), or ("failed", message, traceback) in words that any process can read."""
    try:
        return ("done", *_timed(evaluator, proposal, context))
    except NeaptideError as error:
        return "failed", str(error), traceback.format_exc()
    except Exception as error:  # the parent must hear of it, whatever it is
        return "failed", f"{type(error).__name__}: {error}", traceback.format_exc()


def _answered(answer: tuple[str, Any, Any]) -> tuple[dict[str, float], float]:
    kind, first, second = answer
    if kind == "failed":
        raise NeaptideError(f"evaluating a proposal failed: {first}") from RuntimeError(f"in the worker:\n{second}")
    return first, second


def _timed(evaluator: Any, proposal: Proposal, context: Context) -> tuple[dict[str, float], float]:
    begin = time.perf_counter()
    values = evaluator.evaluate(proposal, context)
    return {name: float(value) for name, value in values.items()}, time.perf_counter() - begin
