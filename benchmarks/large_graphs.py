"""`neaptide analyze` on files of 200,000 operators: processor time and memory of the whole command, by shape of the graph.

`python -m benchmarks.large_graphs [--quick] [--json PATH]`. Each command runs in a process of its own; `--quick`: 20,000 operators.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .figures import Figure, finish

SECONDS, MEMORY = 120.0, 3 << 30
COLUMNS = ("graph", "operators", "peak, B", "lower bound, B", "arena, B", "processor time, s", "memory, MiB", "order; bound")


def main() -> int:
    parser = argparse.ArgumentParser(description="Analysis of graphs of 200,000 operators.")
    parser.add_argument("--quick", action="store_true", help="20,000 operators")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    count = 20_000 if options.quick else 200_000
    rows, seconds, memory = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for shape in (chain, residual, layered, wide, tangled):
            path = Path(folder) / f"{shape.__name__}.json"
            path.write_text(json.dumps(document(shape, count)))
            rows.append(analyzed(path, shape.__name__, seconds, memory))
        path = Path(folder) / "chain.onnx"
        path.write_bytes(onnx_chain(count))
        rows.append(analyzed(path, "chain, ONNX", seconds, memory))
    figures = [
        Figure("processor time of an analysis, worst", f"<= {SECONDS:.0f} s", f"{max(seconds):.0f} s", max(seconds) <= SECONDS),
        Figure("its memory, worst", "<= 3 GiB", f"{max(memory) / 2**30:.2f} GiB", max(memory) <= MEMORY),
    ]
    notes = ["Time and memory are of the command and its children: start, reading, order, arena, and the report on the terminal."]
    return finish("large_graphs", figures, COLUMNS, rows, notes=notes, json_path=options.json)


def analyzed(path: Path, name: str, seconds: list[float], memory: list[int]) -> list[str]:
    """One row; what the command took is added to `seconds` and `memory`."""
    command = [
        sys.executable,
        "-c",
        "import sys; from neaptide.cli import main; sys.exit(main(sys.argv[1:]))",
        "analyze",
        str(path),
        "--json",
    ]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{name}: the command ended with {process.returncode}")
    seconds.append(usage.ru_utime + usage.ru_stime)
    memory.append(usage.ru_maxrss * 1024)
    found = json.loads(text)
    peaks = [f"{found[key]:,}" for key in ("planned_peak", "lower_bound", "arena")]
    nodes = str(sum(1 for _ in found["schedule"]["order"]))
    return [name, nodes, *peaks, f"{seconds[-1]:.1f}", f"{memory[-1] / 2**20:.0f}", found["schedule"]["method"]]


class Plain:
    """A graph in the plain form under construction; buffer 0 is its input."""

    def __init__(self):
        self.draw = random.Random(0)
        self.bufs = [1000]
        self.nodes: list[dict[str, object]] = [{"op": "input", "ins": [], "outs": [0]}]

    def op(self, *operands: int) -> int:
        """An operator with a result of 500 to 5,000 bytes; returns the buffer of that."""
        self.bufs.append(self.draw.randrange(500, 5000))
        self.nodes.append({"op": "op", "ins": sorted(set(operands)), "outs": [len(self.bufs) - 1]})
        return len(self.bufs) - 1


def document(shape: Callable[[Plain, int], int], count: int) -> dict[str, object]:
    """A graph of `shape` with `count` operators or a few more, as a plain document."""
    graph = Plain()
    last = shape(graph, count)
    return {"name": shape.__name__, "nodes": graph.nodes, "bufs": graph.bufs, "out": [last]}


def chain(graph: Plain, count: int) -> int:
    """One operator after another."""
    last = 0
    for _ in range(count):
        last = graph.op(last)
    return last


def residual(graph: Plain, count: int) -> int:
    """Blocks of five operators with two branches and a skip."""
    last = 0
    while len(graph.nodes) <= count:
        long, short = graph.op(graph.op(last)), graph.op(last)
        last = graph.op(graph.op(long, short), last)
    return last


def layered(graph: Plain, count: int) -> int:
    """Layers of 200 operators, each with three operands drawn from the layer before."""
    before = [0]
    while len(graph.nodes) <= count:
        before = [graph.op(*graph.draw.choices(before, k=3)) for _ in range(200)]
    return before[0]


def wide(graph: Plain, count: int) -> int:
    """Half of the operators read the input; a balanced tree joins what they made."""
    level = [graph.op(0) for _ in range(count // 2)]
    while len(level) > 1:
        joined = [graph.op(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = joined + level[len(joined) * 2 :]
    return level[0]


def tangled(graph: Plain, count: int) -> int:
    """Each operator reads two of the 2,000 results before it."""
    last = 0
    for i in range(count):
        last = graph.op(*(graph.draw.randrange(max(0, i - 2000), i + 1) for _ in range(2)))
    return last


def onnx_chain(count: int) -> bytes:
    """An ONNX model of `count` Relus, one after another."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [1, 64]) for i in (0, count)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


if __name__ == "__main__":
    sys.exit(main())
