"""The kernel oracle: what each operator allocates inside itself, measured once and remembered.

Fake tensors tell every shape but not what a CPU kernel takes for itself: reordered weights, im2col buffers, reduction
temporaries, the opaque state an LSTM saves. Each distinct signature (op, shapes, strides, dtypes, scalars, grad mode) is run
alone once in another process on real tensors of safe content (which gives results of the graph's sizes, where content decides them);
the profiler says how many bytes were alive inside it and how large its results' storages truly are. Answers depend on the torch version,
the instruction set and the thread count, and are remembered under all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from .children import Child, environment, python
from .chosen_content import SIZED_BY_DATA
from .errors import NeaptideError
from .graph import Graph, Node
from .oracle_cache import KernelCache, Measurement
from .patience import STALL_S, Patience
from .serialize import encode_attrs
from .wellformed import tensor_extent

METHOD = "3"  # how kernels are run and read; another method's answers are not this one's
QUIET = 0.8  # of the time that passed, what a kernel that takes long has the processor for unless the machine is busy

Progress = Callable[[int, int], None]

_ALLOCATION_FREE = frozenset(("aten._local_scalar_dense.default", "aten.item.default", "aten.set_.source_Storage", "aten.detach_.default"))
_TUNING_VARIABLES = ("ATEN_CPU_CAPABILITY", "DNNL_", "ONEDNN_", "MKL_", "OMP_", "KMP_")


@dataclass(frozen=True, slots=True)
class KernelEnvironment:
    """Everything besides its signature that a kernel's allocations depend on."""

    torch: str
    isa: str
    processor: str
    threads: int
    tuning: tuple[str, ...] = ()

    @classmethod
    def current(cls, threads: int | None = None) -> KernelEnvironment:
        """This process's torch on this machine; `threads` None means torch's own count."""
        import torch

        tuning = tuple(sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(_TUNING_VARIABLES) and "NUM_THREADS" not in k))
        count = torch.get_num_threads() if threads is None else int(threads)
        return cls(torch.__version__, torch.backends.cpu.get_cpu_capability(), _processor(), count, tuning)

    def key(self, signature: str) -> str:
        """Digest under which a measurement of `signature` is remembered."""
        text = "\n".join((METHOD, signature, self.torch, self.isa, self.processor, str(self.threads), *self.tuning))
        return hashlib.sha256(text.encode()).hexdigest()


def with_workspace(
    graph: Graph,
    *,
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> Graph:
    """`graph` with each node's `workspace` and the true sizes of the storages its nodes give birth to, both in bytes.

    `threads`: intra-op threads the kernels would run with (torch's count if None). `cache_dir`: where measurements are
    remembered (`$NEAPTIDE_CACHE`, else the user's cache folder). `timeout`: seconds of processor time one kernel may take. `memory_limit`:
    bytes of arguments and results above which a kernel is not run (a third of the free memory if None). `progress(done, total)` is
    called as missing kernels are measured. Kernels that cannot be measured keep workspace 0 and are listed with the reason in
    `meta["kernels"]["unmeasured"]`. Graphs that are not torch CPU graphs come back unchanged but for that entry.
    """
    options = {"threads": threads, "cache_dir": cache_dir, "timeout": timeout, "memory_limit": memory_limit, "progress": progress}
    return with_workspaces((graph,), **options)[0]


def with_workspaces(
    graphs: Iterable[Graph],
    *,
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[Graph, ...]:
    """`with_workspace` of several graphs, whose missing kernels are measured by one process."""
    if threads is not None and threads < 1:
        raise NeaptideError(f"threads is {threads}; a kernel runs with one thread or more")
    graphs = tuple(graphs)
    signatures = [{n.id: text for n in g.nodes if (text := kernel_signature(g, n)) is not None} for g in graphs]
    on_cpu = [str(g.meta.get("device", "cpu")).startswith("cpu") for g in graphs]
    if not any(cpu and texts for cpu, texts in zip(on_cpu, signatures, strict=True)):
        return tuple(_unmeasured(g, texts, cpu) for g, texts, cpu in zip(graphs, signatures, on_cpu, strict=True))
    environment = KernelEnvironment.current(threads)
    limit = _free_memory() // 3 if memory_limit is None else int(memory_limit)
    known: dict[str, Measurement] = {}
    wanted: dict[str, str] = {}
    for graph, texts, cpu in zip(graphs, signatures, on_cpu, strict=True):
        for v, text in texts.items() if cpu else ():
            if text in known or text in wanted:
                continue
            need = _tensor_bytes(graph, graph.nodes[v])
            refused = _refused(graph.nodes[v].op)
            if refused:
                known[text] = Measurement(reason=refused)
            elif need > limit:
                known[text] = Measurement(reason=f"its tensors take {need:,} B, more than the limit of {limit:,} B")
            else:
                wanted[text] = environment.key(text)
    known |= _remembered_or_measured(wanted, environment, cache_dir, timeout, limit, progress)
    return tuple(
        _measured(g, texts, known, environment) if cpu and texts else _unmeasured(g, texts, cpu)
        for g, texts, cpu in zip(graphs, signatures, on_cpu, strict=True)
    )


def _measured(graph: Graph, texts: Mapping[int, str], known: Mapping[str, Measurement], environment: KernelEnvironment) -> Graph:
    """`graph` with what is `known` about its kernels, `texts` by node id."""
    facts = {
        "threads": environment.threads,
        "isa": environment.isa,
        "torch": environment.torch,
        "processor": environment.processor,
        "measured": sum(not known[text].reason for text in set(texts.values())),
        "unmeasured": {graph.nodes[v].op: known[text].reason for v, text in texts.items() if known[text].reason},
    }
    return _with_facts(_apply(graph, {v: known[text] for v, text in texts.items()}), facts)


def _unmeasured(graph: Graph, texts: Mapping[int, str], cpu: bool) -> Graph:
    """A graph without torch CPU kernels as it is, with the reason."""
    reason = f"kernels of {graph.meta.get('device')} are not measured"
    return _with_facts(graph, {"measured": 0, "unmeasured": {} if cpu else {graph.nodes[v].op: reason for v in texts}})


def kernel_signature(graph: Graph, node: Node) -> str | None:
    """Canonical JSON of what `node` runs and on what, or None if it is no torch kernel or only makes views."""
    if node.op.count(".") != 2 or "args" not in node.attrs or node.op in _ALLOCATION_FREE or graph.is_view(node):
        return None
    tensors = [graph.tensors[t] for t in node.inputs]
    signature = {
        "op": node.op,
        "args": encode_attrs(node.attrs["args"]),
        "kwargs": encode_attrs(node.attrs.get("kwargs", {})),
        "tensors": [[list(t.shape), None if t.strides is None else list(t.strides), t.dtype] for t in tensors],
        "grad": bool(node.attrs.get("grad", False)),
    }
    if any(n is not None for n in node.attrs.get("chosen", ())):
        signature["chosen"] = node.attrs["chosen"]
    if node.op in SIZED_BY_DATA:
        signature["results"] = [list(graph.tensors[t].shape) for t in node.outputs]
    return json.dumps(signature, sort_keys=True, separators=(",", ":"))


def _refused(op: str) -> str:
    """Why the worker may not run `op`; empty where it may, and for what this process does not know."""
    from .allowed_ops import overload_of, refusal

    found = overload_of(op)
    why = None if found is None else refusal(found)
    return "" if why is None else f"{op} {why}"


def _apply(graph: Graph, measured: Mapping[int, Measurement]) -> Graph:
    """The graph with sizes and workspaces from `measured`, by node id."""
    storages = list(graph.storages)
    extents = [0] * len(storages)
    for t in graph.tensors:
        extents[t.storage] = max(extents[t.storage], tensor_extent(t))
    nodes = list(graph.nodes)
    for v, kernel in measured.items():
        if kernel.reason:
            continue
        node = graph.nodes[v]
        born = [graph.tensors[t].storage for t in node.outputs]
        if len(born) == len(kernel.outputs):
            for s, nbytes in zip(born, kernel.outputs, strict=True):
                if nbytes is not None and graph.birth[s] == v and nbytes >= extents[s]:
                    storages[s] = replace(storages[s], nbytes=nbytes)
        at_birth = sum(storages[s].nbytes for s in set(born) if graph.birth[s] == v)
        nodes[v] = replace(node, workspace=max(0, kernel.inner - at_birth))
    return replace(graph, nodes=tuple(nodes), storages=tuple(storages))


def _with_facts(graph: Graph, facts: dict[str, Any]) -> Graph:
    return replace(graph, meta={**graph.meta, "kernels": facts})


# ---- measuring what is not remembered --------------------------------------------------------------------------------------


def _remembered_or_measured(
    wanted: Mapping[str, str],
    environment: KernelEnvironment,
    cache_dir: str | os.PathLike[str] | None,
    timeout: float,
    memory_limit: int,
    progress: Progress | None,
) -> dict[str, Measurement]:
    """Measurements by signature; `wanted` maps signatures to cache keys."""
    cache = KernelCache(cache_dir)
    try:
        known = cache.get(wanted.values(), limit_s=timeout)
        found = {text: known[key] for text, key in wanted.items() if key in known}
        missing = [text for text in wanted if text not in found]
        for text, measurement, permanent in measure_kernels(missing, environment.threads, timeout, memory_limit):
            found[text] = measurement
            if permanent:
                stopped = {wanted[text]: timeout} if measurement.reason.startswith("took longer") else {}
                cache.put({wanted[text]: text}, {wanted[text]: measurement}, limits=stopped)
            if progress is not None:
                progress(len(found) - (len(wanted) - len(missing)), len(missing))
        return found
    finally:
        cache.close()


def measure_kernels(
    signatures: Iterable[str], threads: int, timeout: float = 60.0, memory_limit: int = 4 << 30
) -> Iterable[tuple[str, Measurement, bool]]:
    """Run each signature in a worker process; yields it, its measurement, and whether the answer will be the same next time.

    One worker serves all; no signature, no worker. A signature on which the worker ends is tried again first thing in a fresh
    one, and is called unmeasurable only if that one ends too, so that an earlier kernel's damage is not blamed on a later one.
    """
    pending = list(signatures)
    fresh = None
    while pending:
        with Worker(threads, memory_limit) as worker:
            while pending:
                text = pending[0]
                answer = worker.ask(text, timeout)
                if isinstance(answer, dict):
                    pending.pop(0)
                    yield text, _measurement(answer), not answer.get("transient", False)
                    if answer.get("stopped"):
                        break
                    continue
                if fresh == text:
                    pending.pop(0)
                    yield text, Measurement(reason=answer), True
                fresh = text
                break


def _measurement(answer: Mapping[str, Any]) -> Measurement:
    if "reason" in answer:
        return Measurement(reason=str(answer["reason"]))
    return Measurement(int(answer["inner"]), tuple(answer["outputs"]))


def stopped(thread: float, process: float, wall: float, *, timeout: float, threads: int) -> dict[str, Any] | None:
    """The answer about a kernel that has taken enough, or None while it may go on.

    `thread`, `process`: processor time so far of the thread that called it and of all; `wall`: seconds passed. The answer will not be the
    same next time if the machine was busy: then threads that wait for each other use time that they would not on a quiet one.
    """
    if thread <= timeout and process <= timeout * threads:
        return None
    return {"reason": f"took longer than {timeout:g} s", "transient": max(thread, process / threads) < QUIET * wall, "stopped": True}


class Worker:
    """The process that runs kernels; leaving the `with` block ends it, whatever happened inside."""

    def __init__(self, threads: int, memory_limit: int):
        self._threads = threads
        words = python(f"{__package__}.oracle_worker", str(threads), str(memory_limit))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._child = Child(words, **pipes, env=environment(OMP_NUM_THREADS=str(threads)), text=True, encoding="utf-8")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready, self._asked = False, 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._child.__exit__(kind, error, trace)

    def ask(self, signature: str, timeout: float) -> dict[str, Any] | str:
        """The worker's answer, also when it was stopped after `timeout` seconds of processor time; or how the process ended."""
        self._wait_until_ready()
        assert self._child.process.stdin is not None
        try:
            self._child.process.stdin.write(signature + "\n")
            self._child.process.stdin.flush()
        except BrokenPipeError:
            return _ended(self._child.status())
        self._asked += 1
        answer = self._answer(timeout)
        return _ended(self._child.status()) if answer is None else answer

    def _wait_until_ready(self) -> None:
        """As long as it takes: a busy machine may need minutes to import torch."""
        if self._ready:
            return
        answer = self._answer(float("inf"))
        self._ready = answer is not None and answer.get("ready") is True
        if not self._ready:
            how = f"it said {answer}" if answer else f"exit status {self._child.status()}"
            raise NeaptideError(f"the kernel oracle's process {self._child.words[0]!r} did not start ({how}): is torch importable?")

    def _answer(self, timeout: float) -> dict[str, Any] | None:
        """The next line that is no report on the way to it; None at the end of the lines."""
        patience = Patience()
        while True:
            try:
                line = self._lines.get(timeout=STALL_S)
            except queue.Empty:
                return {"reason": f"its process was silent for {STALL_S:g} s", "transient": True, "stopped": True}
            if line is None:
                return None
            try:
                said = json.loads(line)
                beat = said.get("beat")
            except (ValueError, AttributeError):
                return {"reason": f"its process said {line[:100]!r}", "transient": True, "stopped": True}
            if beat is None:
                return said
            number, thread, process, wall = beat
            if number != self._asked:  # written before the request came
                continue
            if (enough := stopped(thread, process, wall, timeout=timeout, threads=self._threads)) is not None:
                return enough
            if patience.ended(process):
                return {"reason": f"did nothing for {STALL_S:g} s", "transient": True, "stopped": True}

    def _read(self) -> None:
        assert self._child.process.stdout is not None
        try:
            for line in self._child.process.stdout:
                self._lines.put(line)
        except ValueError:  # closed by __exit__ while this thread was reading
            return
        finally:
            self._lines.put(None)


def _ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    try:
        return f"its process was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"its process was ended by signal {-status}"


# ---- the machine -------------------------------------------------------------------------------------------------------------


def _tensor_bytes(graph: Graph, node: Node) -> int:
    """Bytes of the real tensors a run of `node` alone needs."""
    arguments = sum(tensor_extent(graph.tensors[t]) - graph.tensors[t].offset for t in node.inputs if graph.tensors[t].numel)
    results = {graph.tensors[t].storage for t in node.outputs}
    return arguments + sum(graph.storages[s].nbytes for s in results if graph.birth[s] == node.id)


def _processor() -> str:
    """The processor's model name: kernels choose blockings by its caches as well as by its instruction set."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    import platform

    return f"{names[0] if names else platform.processor()} {platform.machine()}".strip()


def _free_memory() -> int:
    """Bytes of memory that can be used without swapping; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 4 << 30
    return 4 << 30
