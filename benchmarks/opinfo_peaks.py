"""Predicted eager peaks of every operator in torch's own database of samples, against the profiler's, to the byte; runs in the arena.

`python -m benchmarks.opinfo_peaks [--mode inference|training|arena] [--samples N] [--only NAME ...] [--resume FILE]
[--quick] [--json PATH]`.
Each sample is a model of one call. In training its floating tensors are parameters, and one step of SGD is taken. A sample whose
kernels could not be measured, or whose sizes are bounds, says so in the result itself and is listed, not counted as equal. In the arena
each sample runs inside its memory plan, and its bits are compared with a run outside.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import importlib.util
import itertools
import sys
import types
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from neaptide.compiler.errors import NeaptideError
from neaptide.compiler.oracle import with_workspaces
from neaptide.compiler.trace import trace
from neaptide.compiler.training import TrainingLoop, trace_training
from neaptide.passes.allocate import allocate
from neaptide.passes.execute import execute_in_arena
from neaptide.passes.liveness import eager_liveness

from .figures import Figure, finish
from .ground_truth import profiled_peak
from .peak_runs import run_all, serve

STALL_S = 120
PEAK = "peak equals the profiler's to the byte"
GROUP = 12
REACH = {"inference": 0.995, "training": 0.98, "arena": 0.995}


def main() -> int:
    parser = argparse.ArgumentParser(description="Predicted eager peaks of torch's operator samples against the profiler's.")
    parser.add_argument("--mode", choices=tuple(REACH), nargs="+", default=list(REACH))
    parser.add_argument("--samples", type=int, default=1 << 30, help="at most so many samples of an operator")
    parser.add_argument("--only", nargs="+", help="just these operators, as name or name/variant")
    parser.add_argument("--quick", action="store_true", help="every twentieth operator, three samples of each")
    parser.add_argument("--resume", help="keep results in this file and go on from them")
    parser.add_argument("--json")
    parser.add_argument("--worker", choices=tuple(REACH), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.samples = 3
    if options.worker:
        return serve(lambda case: compare(case, options.worker, options.samples), 1)
    chosen = options.only or names()[:: 20 if options.quick else 1]
    figures, rows, notes = [], [], []
    for mode in options.mode:
        words = ["--worker", mode, "--samples", str(options.samples)]
        answers = in_groups(mode, words, chosen, options.resume)
        samples = {name: s for answer in answers.values() for name, s in answer.get("samples", {}).items()}
        kinds = Counter(s["verdict"] for s in samples.values())
        ended = {op: answer["error"] for op, answer in answers.items() if "error" in answer}
        equal, counted = kinds["equal"], sum(kinds[k] for k in ("equal", "off", "refused"))
        share = equal / max(1, counted)
        figures += [
            Figure(
                f"{mode}: samples whose {'bits in the arena are those outside' if mode == 'arena' else PEAK}",
                f">= {REACH[mode]:.1%}, the rest said in the result",
                f"{equal} of {counted} ({share:.2%}); {kinds['said']} unmeasured or bounds; {kinds['sparse']} of sparse inputs are refused",
                share >= REACH[mode],
            ),
            Figure(f"{mode}: operators at which the process ended or hung", "0", f"{len(ended)} {sorted(ended)[:8]}", not ended),
        ]
        for name, s in samples.items():
            if s["verdict"] != "equal":
                notes.append(f"{mode} {name}: {s['verdict']}: {s['why']}")
        rows.append([mode, len(chosen), len(samples), equal, kinds["off"], kinds["refused"], kinds["said"]])
    columns = ["mode", "operators", "samples", "equal", "off", "refused", "said"]
    return finish("opinfo_peaks", figures, columns, rows, threads=1, notes=notes, json_path=options.json)


@functools.cache
def database() -> list[Any]:
    """Torch's operator samples; its test helpers want a package that compares texts, which nothing here does."""
    if importlib.util.find_spec("expecttest") is None:
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        vars(sys.modules["expecttest"])["TestCase"] = unittest.TestCase
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


def names() -> list[str]:
    """`name` or `name/variant` of every operator."""
    return [f"{op.name}/{op.variant_test_name}" if op.variant_test_name else op.name for op in database()]


def in_groups(mode: str, words: list[str], chosen: list[str], resume: str | None) -> dict[str, dict[str, Any]]:
    """Answers by group of operators, whose kernels are measured together; a group that ended the process is asked one by one."""
    groups = [" ".join(chosen[i : i + GROUP]) for i in range(0, len(chosen), GROUP)]
    found = run_all("benchmarks.opinfo_peaks", words, groups, f"opinfo {mode}", resume)
    single = [name for group, answer in found.items() if "error" in answer for name in group.split()]
    alone = run_all("benchmarks.opinfo_peaks", words, single, f"opinfo {mode}", resume)
    return {group: answer for group, answer in found.items() if "error" not in answer} | alone


def compare(case: str, mode: str, most: int) -> dict[str, Any]:
    """A verdict for each sample of some operators."""
    training = mode == "training"
    known = dict(zip(names(), database(), strict=True))
    found: dict[str, dict[str, Any]] = {}
    pending: dict[str, tuple[Any, int]] = {}
    for name in case.split():
        op = known[name]
        dtype = next((d for d in (torch.float32, torch.int64, torch.bool, torch.complex64) if op.supports_dtype(d, "cpu")), None)
        if dtype is None or (training and not (op.supports_autograd and dtype == torch.float32)):
            continue
        torch.manual_seed(0)
        for i, sample in enumerate(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=training), most)):
            with stall():
                answer = RUNS[mode](op, sample)
            if isinstance(answer, dict):
                found[f"{name}[{i}]"] = answer
            else:
                pending[f"{name}[{i}]"] = answer
    graphs = with_workspaces([graph for graph, _ in pending.values()])
    verdicts = (_verdict(graph, truth) for graph, (_, truth) in zip(graphs, pending.values(), strict=True))
    if mode == "arena":
        return {"samples": found}
    return {"samples": found | dict(zip(pending, verdicts, strict=True))}


@contextlib.contextmanager
def stall() -> Iterator[None]:
    """Inside: the process ends when no progress is made, since some hangs hear no exception."""
    faulthandler.dump_traceback_later(STALL_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _inference(op: Any, sample: Any) -> dict[str, Any] | tuple[Any, int]:
    """A verdict, or the graph and the true peak."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return op.op(*args, **kwargs)

    args, kwargs = (sample.input, *sample.args), sample.kwargs
    try:
        with torch.no_grad():
            (args, kwargs), *again = [_cloned((args, kwargs)) for _ in range(3)]
            call(*again[0][0], **again[0][1])
            truth = profiled_peak(lambda: call(*again[1][0], **again[1][1])).nbytes
    except Exception as error:
        return {"verdict": "raises", "why": f"torch itself: {type(error).__name__}"}
    try:
        return trace(Call(call), args, kwargs), truth
    except NeaptideError as error:
        return _refused(error)


def _training(op: Any, sample: Any) -> dict[str, Any] | tuple[Any, int]:
    """A verdict, or the graph and the true peak of one step."""
    loop, truth = TrainingLoop(loss=_total), 0

    def bound() -> Bound:
        return Bound(op.op, *_cloned((sample.input, sample.args, sample.kwargs)))

    try:
        for _ in range(2):
            model = bound()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            truth = profiled_peak(functools.partial(loop.step, model, (), {}, optimizer)).nbytes
    except Exception as error:
        return {"verdict": "raises", "why": f"torch itself: {type(error).__name__}"}
    try:
        return trace_training(bound(), (), loss=_total, optimizer="sgd:lr=0.1", step=1), truth
    except NeaptideError as error:
        return _refused(error)


def _arena(op: Any, sample: Any) -> dict[str, Any]:
    """Whether a run inside the memory plan gives the bits of a run outside."""
    model, args, kwargs = Call(op.op), (sample.input, *sample.args), sample.kwargs
    try:
        graph = trace(model, args, kwargs)
    except NeaptideError as error:
        return _refused(error)
    given, wanted = _cloned((args, kwargs)), _cloned((args, kwargs))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            expected = model(*wanted[0], **wanted[1])
    except Exception as error:
        return {"verdict": "raises", "why": f"torch itself: {type(error).__name__}"}
    try:
        run = execute_in_arena(graph, allocate(graph, inputs="planned"), *given, seed=0)
    except NeaptideError as error:
        return _refused(error)
    difference = run.difference(expected)
    return {"verdict": "off" if difference else "equal", "why": difference or ""}


RUNS: dict[str, Callable[[Any, Any], Any]] = {"inference": _inference, "training": _training, "arena": _arena}


def _refused(error: Exception) -> dict[str, Any]:
    return {"verdict": "sparse" if "sparse tensor" in str(error) or "SparseCsr" in str(error) else "refused", "why": str(error)[:300]}


def _verdict(graph: Any, truth: int) -> dict[str, Any]:
    peak = eager_liveness(graph).peak
    said = [str(graph.meta["kernels"]["unmeasured"])[:200]] if graph.meta["kernels"]["unmeasured"] else []
    said += ["bounds"] if graph.meta.get("bounds") else []
    ops = " ".join(n.op.removeprefix("aten.") for n in graph.nodes)[:300]
    if peak == truth:
        return {"verdict": "equal", "why": ""}
    return {"verdict": "said" if said else "off", "why": f"{peak:,} for {truth:,} B; {', '.join(said)} {ops}"}


def _cloned(value: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), value)


def _total(output: Any) -> Any:
    """The sum of what needs gradients, real as a loss is."""
    parts = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    total: Any = None
    for part in parts:
        one = torch.view_as_real(part.resolve_conj()).sum() if part.is_complex() else part.sum()
        total = one if total is None else total + one
    if total is None:
        raise ValueError("no output needs gradients")
    return total


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Bound(torch.nn.Module):
    """A function with its arguments, whose tensors that need gradients are parameters."""

    def __init__(self, function: Any, *arguments: Any):
        super().__init__()
        self.function = function
        leaves, self.spec = tree_flatten(arguments)
        self.leaves: list[Any] = []
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                self.register_parameter(f"p{i}", torch.nn.Parameter(leaf.detach()))
            elif isinstance(leaf, torch.Tensor):
                self.register_buffer(f"p{i}", leaf)
            self.leaves.append(None if isinstance(leaf, torch.Tensor) else leaf)
        self.tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def forward(self) -> Any:
        leaves = list(self.leaves)
        for i in self.tensors:
            leaves[i] = getattr(self, f"p{i}")
        first, args, kwargs = tree_unflatten(leaves, self.spec)
        return self.function(first, *args, **kwargs)


if __name__ == "__main__":
    sys.exit(main())
