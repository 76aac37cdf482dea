"""The kernel oracle's other process: runs single kernels on real tensors and tells what they allocated.

Given THREADS and MEMORY_LIMIT it reads one signature (JSON) a line and answers each with one line. Between, from its first moment on, it
tells what it has used since it began or was last asked: the parent waits while that grows. A kernel given wrong content may end the
process; the parent then knows which one it was.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from .errors import TraceError

WARM_UP_SECONDS = 0.25
BEAT_S = 0.25
DRAWN_ELEMENTS = 1 << 20


def main() -> None:
    """Serve requests until standard input ends."""
    threads, memory_limit = int(sys.argv[1]), int(sys.argv[2])
    answers = Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    threading.Thread(target=answers.beat, daemon=True).start()
    import torch

    from . import args, serialize  # noqa: F401

    torch.set_num_threads(threads)
    _limit_memory(memory_limit)
    allocations(lambda: None)  # what is done once is on no kernel's account
    serve(sys.stdin, answers)


class Answers:
    """Lines to the parent: an object each, `{"beat": [number, thread, process, wall]}` every quarter of a second among the others.

    `number`: of the request, 0 before the first. `thread`, `process`: seconds of processor time of the thread that runs kernels and of
    all threads; `wall`: seconds passed. All since the request came.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._lock = stream, threading.Lock()
        clock_of = getattr(time, "pthread_getcpuclockid", None)  # macOS and Windows have none
        self._clock = clock_of(threading.get_ident()) if clock_of else None
        self._began = 0, self._now()

    def begin(self) -> None:
        """Another request has come."""
        self._began = self._began[0] + 1, self._now()

    def say(self, **answer: Any) -> None:
        """Write one line."""
        with self._lock:
            self._stream.write(json.dumps(answer) + "\n")
            self._stream.flush()

    def beat(self) -> None:
        """Report as long as the process lives."""
        while True:
            number, began = self._began
            self.say(beat=[number, *(now - before for now, before in zip(self._now(), began, strict=True))])
            time.sleep(BEAT_S)

    def _now(self) -> tuple[float, float, float]:
        process = time.process_time()
        return process if self._clock is None else time.clock_gettime(self._clock), process, time.monotonic()


def serve(requests: TextIO, answers: Answers) -> None:
    """Answer each request line with `{"inner", "outputs"}` or `{"reason", "transient"}`."""
    answers.say(ready=True)
    for line in requests:
        answers.begin()
        try:
            answer = measure(json.loads(line))
        except Exception as error:  # whatever a kernel raises is the answer about that kernel
            answer = _refusal(error)
        answers.say(**answer)


def _refusal(error: Exception) -> dict[str, Any]:
    """`transient`: another process, or one with more memory, may well do better."""
    text = str(error).splitlines()[0] if str(error) else "no message"
    unknown_op = isinstance(error, TraceError)
    out_of_memory = isinstance(error, MemoryError) or "allocate memory" in text
    return {"reason": f"{type(error).__name__}: {text}"[:300], "transient": unknown_op or out_of_memory}


def measure(signature: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes allocated inside one call, and the storage sizes of what it returns.

    A kernel that allocates more than its results runs a second time, and that run counts: models are profiled warm, too.
    Integers are first zeros (in range for every index), then ones (for lengths and divisors) if zeros are refused.
    """
    try:
        return _measure(signature, integers=0)
    except (RuntimeError, ValueError, IndexError):
        return _measure(signature, integers=1)


def _measure(signature: dict[str, Any], integers: int) -> dict[str, Any]:
    import torch

    from .args import call_args, runnable
    from .chosen_content import choose_content, choose_masks
    from .serialize import decode_attrs

    op = runnable(signature["op"])
    tensors = [_tensor(*spec, integers=integers) for spec in signature["tensors"]]
    args, kwargs = call_args(
        {"args": decode_attrs(signature["args"], "args"), "kwargs": decode_attrs(signature["kwargs"], "kwargs")}, tensors
    )
    if "results" in signature:
        choose_content(signature["op"], args, kwargs, signature["results"])
    if "chosen" in signature:
        choose_masks(tensors, signature["chosen"])
    prepare = _PREPARE.get(signature["op"])
    with torch.set_grad_enabled(signature["grad"]):
        if prepare is not None:
            args = prepare(args)
        arguments = {t.untyped_storage().data_ptr() for t in _leaves((args, kwargs))}
        began = time.perf_counter()
        result, events = allocations(lambda: op(*args, **kwargs))
        outputs = _born(result, arguments)
        if peak(events) > sum(filter(None, outputs)) and time.perf_counter() - began < WARM_UP_SECONDS:
            del result
            result, events = allocations(lambda: op(*args, **kwargs))
            outputs = _born(result, arguments)
    shapes = [list(t.shape) for t in _leaves(result)]
    if shapes != signature.get("results", shapes):
        raise ValueError(f"its results have sizes {shapes} on content of ours, and {signature['results']} in the graph")
    return {"inner": peak(events), "outputs": outputs}


def _born(result: Any, arguments: set[int]) -> list[int | None]:
    """Per tensor in `result` the bytes of its storage, None where it lies on one at an address in `arguments`."""
    storages = [t.untyped_storage() for t in _leaves(result)]
    return [None if s.nbytes() and s.data_ptr() in arguments else s.nbytes() for s in storages]


def allocations(call: Callable[[], Any]) -> tuple[Any, list[tuple[int, int, int]]]:
    """What `call` returns, and the CPU allocator's events during it, in time order: (nanoseconds, bytes, address); frees are negative."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    kind = _EventType.Allocation
    events: list[tuple[int, int, int]] = []
    stack = list(profiler.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        if event.tag == kind:
            fields: Any = event.extra_fields
            events.append((event.start_time_ns, fields.alloc_size, fields.ptr))
        stack.extend(event.children)
    events.sort(key=lambda event: event[0])
    return result, events


def peak(events: list[tuple[int, int, int]]) -> int:
    """Most bytes alive at once among those allocated by `events`; frees of older memory are no gain."""
    live = highest = 0
    alive: dict[int, int] = {}
    for _, size, address in events:
        if size > 0:
            alive[address] = size
            live += size
            highest = max(highest, live)
        else:
            live -= alive.pop(address, 0)
    return highest


def _tensor(shape: list[int], strides: list[int] | None, dtype: str, *, integers: int) -> Any:
    """A tensor of safe content: floats in [0.5, 1), integers all `integers`, booleans all true (masks then keep everything)."""
    import torch

    from .args import torch_dtype

    kind = torch_dtype(dtype)
    if strides is None:
        strides = list(torch.empty(shape, device="meta").stride())
    span = 0 if 0 in shape else 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    if kind == torch.bool:
        flat = torch.ones(span, dtype=kind)
    elif kind.is_complex or (kind.is_floating_point and kind.itemsize > 1):
        flat = torch.empty(span, dtype=kind)
        numbers = torch.view_as_real(flat) if kind.is_complex else flat
        numbers.uniform_(0.5, 1.0) if span <= DRAWN_ELEMENTS else numbers.fill_(0.75)
    elif kind.is_floating_point:
        flat = torch.full((span,), 0.5).to(kind)
    else:
        flat = torch.full((span,), integers, dtype=kind)
    return flat.as_strided(shape, strides)


def _leaves(value: Any) -> Iterator[Any]:
    """Tensors inside nested tuples, lists and dicts, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def _rnn_backward_arguments(args: list[Any]) -> list[Any]:
    """oneDNN's LSTM backward reads the opaque workspace its forward wrote: anything else there ends the process."""
    import torch

    inputs, weights, states = args[0], args[1:5], args[5:7]
    reverse, mode, hidden, layers, biased, _train, bidirectional, batch_sizes, batch_first = args[13:22]
    forward = (inputs, *weights, *states, reverse, batch_sizes, mode, hidden, layers, biased, bidirectional, batch_first, True)
    with torch.enable_grad():
        output, hy, cy, workspace = torch.ops.aten.mkldnn_rnn_layer.default(*forward)
    return [*args[:7], output, hy, cy, *args[10:22], workspace, *args[23:]]


def _batch_norm_backward_arguments(args: list[Any]) -> list[Any]:
    """Saved statistics have the weight's dtype; fake tensors give them the input's."""
    weight = args[2]
    if weight is None or weight.dtype == args[1].dtype:
        return args
    return [*args[:5], *(t if t is None else t.to(weight.dtype) for t in args[5:7]), *args[7:]]


_PREPARE: dict[str, Callable[[list[Any]], list[Any]]] = {
    "aten.mkldnn_rnn_layer_backward.default": _rnn_backward_arguments,
    "aten.native_batch_norm_backward.default": _batch_norm_backward_arguments,
}


def _limit_memory(nbytes: int) -> None:
    """Make the allocator fail, rather than the machine swap, when a kernel wants more than `nbytes`."""
    if sys.platform != "linux":
        return
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            mapped = int(stream.read().split()[0]) * resource.getpagesize()
    except OSError:  # without /proc nobody knows how much is mapped, and a limit would be a guess
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped + nbytes + (2 << 30), resource.RLIM_INFINITY))
