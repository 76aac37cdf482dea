"""From measurements to the cost database and back: what a run taught, kept by operator and by network; many runs side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from statistics import median
from typing import Any, TypeVar

from ..compiler.children import ChildContext
from ..compiler.errors import MissingExtraError, NeaptideError
from .cost import Cost
from .database import CostDatabase, NetworkRow, OperatorRow, Unit

Item = TypeVar("Item")


def toolchain_of(versions: Mapping[str, str]) -> str:
    """The tools that make a number what it is, in one line: all of `versions` but the emulator, which only counts."""
    return "; ".join(f"{tool} {versions[tool]}" for tool in sorted(versions) if tool != "emulator")


def remember(cost: Cost, database: CostDatabase, *, network: str | None = None) -> int:
    """Keep what a measured `cost` says of its operators and of the whole, in one transaction; returns how many rows were written.

    An operator that occurs several times is kept with its median. `network`: the network's signature, its name when None; one
    without a name keeps its operators only. A cost that was not measured is refused with `NeaptideError`: predictions must not
    become training data.
    """
    if cost.kind != "measured":
        raise NeaptideError(f"a {cost.kind} cost of {cost.name or 'a model'} on {cost.target} is not kept; only measurements are")
    if cost.correct is False:
        raise NeaptideError(f"the cost of {cost.name or 'a model'} on {cost.target} is not kept: {cost.reasons[0]}")
    toolchain = toolchain_of(cost.versions)
    values: dict[str, list[float]] = {}
    workspace: dict[str, int] = {}
    unit: Unit = "seconds" if cost.instructions is None else "instructions"
    for op in cost.per_op:
        value = op.seconds if cost.instructions is None else op.instructions
        if op.kind == "measured" and value is not None and op.tuned is not False:
            values.setdefault(op.signature, []).append(value)
            workspace[op.signature] = op.bytes
    rows: list[OperatorRow | NetworkRow] = [
        OperatorRow(signature, cost.target, toolchain, float(median(found)), unit, bytes=workspace[signature], features=features(signature))
        for signature, found in values.items()
    ]
    key = cost.name if network is None else network
    if key and cost.value is not None:
        operators = dict(Counter(op.signature for op in cost.per_op))
        rows.append(NetworkRow(key, cost.target, toolchain, float(cost.value), operators, unit, cost.spread))
    return database.put_all(rows)


def features(signature: str) -> dict[str, Any]:
    """What a signature `kind(1x16x32x32,32x16x3x3,1x32x16x16)#hash` says that a predictor learns from; {} for any other text.

    The last shape is the result, the first the input, one of four dimensions between them a convolution's weights. `op`: the kind;
    `input`, `output`: elements; `kernel`, `stride`, `expansion` (output by input channels); `macs`: multiply-adds, where there are
    weights. ProxylessNAS's features (arXiv 1812.00332).
    """
    kind, opened, rest = signature.partition("(")
    listed, closed, _ = rest.partition(")")
    try:
        shapes = [tuple(int(d) for d in text.split("x")) for text in listed.split(",")]
    except ValueError:
        return {}
    if not (opened and closed and kind) or len(shapes) < 2:
        return {}
    source, result = shapes[0], shapes[-1]
    known: dict[str, Any] = {"op": kind, "input": math.prod(source), "output": math.prod(result)}
    known["expansion"] = result[1] / source[1] if min(len(source), len(result)) > 1 and source[1] else 1.0
    between = shapes[1:-1]
    weights = next((s for s in between if len(s) == 4 and len(source) == 4 and s[0] == result[1] and source[1] % s[1] == 0), None)
    if "conv" in kind and weights and len(result) == 4:
        known["kernel"] = weights[2]
        known["stride"] = max(1, round(source[2] / result[2]))
        known["macs"] = math.prod(result) * weights[1] * weights[2] * weights[3]
    elif any(word in kind for word in ("matmul", "dense")) and between:
        known["macs"] = math.prod(result) * source[-1]
    return known


def measure_all(
    measure: Callable[[Item], Cost], items: Sequence[Item], *, workers: int | None = None, done: Callable[[int], None] | None = None
) -> list[Cost | NeaptideError]:
    """`measure(item)` for every item in `workers` processes (None: as many as processors); results in the order of `items`.

    An item that cannot be measured has its `NeaptideError` in its place, and the others go on. `measure` and the items travel to
    other processes, so `measure` is a function of a module. `done` hears how many are finished. Raises `NeaptideError` when a
    process dies, naming what it may have died of.
    """
    if workers == 1 or len(items) < 2:
        results: list[Cost | NeaptideError] = []
        for item in items:
            results.append(_measured(measure, item))
            if done:
                done(len(results))
        return results
    finished = 0

    def count(_: object) -> None:
        nonlocal finished
        finished += 1
        if done:
            done(finished)

    with ProcessPoolExecutor(workers, mp_context=ChildContext()) as pool:
        futures = [pool.submit(_measured, measure, item) for item in items]
        for future in futures:
            future.add_done_callback(count)
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            first = next(i for i, f in enumerate(futures) if not f.done() or f.exception() is not None)
            raise NeaptideError(
                f"a process that measured died near candidate {first} of {len(items)} (out of memory, or killed); try fewer workers"
            ) from None


def _measured(measure: Callable[[Item], Cost], item: Item) -> Cost | NeaptideError:
    try:
        return measure(item)
    except MissingExtraError as error:
        return NeaptideError(str(error))  # it cannot travel between processes: it is built from three texts
    except NeaptideError as error:
        return error
