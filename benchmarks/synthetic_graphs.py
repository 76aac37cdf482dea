"""Large graphs made from rules, for figures about scale: randomly wired networks and transformer training steps."""

from __future__ import annotations

import random
from collections import defaultdict

from neaptide.compiler.graph import Graph, GraphBuilder


def randwire(n_nodes: int, *, stages: int = 3, degree: int = 4, rewire: float = 0.75, seed: int = 0) -> Graph:
    """A network of `stages` Watts-Strogatz stages of `n_nodes` units each (Xie et al., ICCV 2019), fused, in fp32.

    A unit sums its operands, pairwise, and convolves; its channels double and its area falls to a quarter per stage, so each
    result holds half the bytes of the stage before. About `stages * n_nodes * 2.5` nodes.
    """
    rng = random.Random(seed)
    b = GraphBuilder(f"randwire_{stages}x{n_nodes}_s{seed}")
    nbytes = 4 * 78 * 56 * 56
    value = b.tensor((nbytes,), "uint8", role="input")
    b.inputs.append(value)
    for _ in range(stages):
        edges = _watts_strogatz(n_nodes, degree, rewire, rng)
        operands = defaultdict(list)
        for u, v in edges:
            operands[v].append(u)
        has_user = {u for u, _ in edges}
        results = []
        for v in range(n_nodes):
            total = results[operands[v][0]] if operands[v] else value
            for u in operands[v][1:]:
                total = _op(b, "add", (total, results[u]), nbytes)
            results.append(_op(b, "conv", (total,), nbytes))
        ends = [results[v] for v in range(n_nodes) if v not in has_user]
        value = ends[0]
        for other in ends[1:]:
            value = _op(b, "add", (value, other), nbytes)
        nbytes //= 2
        value = _op(b, "conv_stride_2", (value,), nbytes)
    b.outputs.append(value)
    return b.build()


def transformer_training(layers: int, *, tokens: int = 128, width: int = 256, heads: int = 4) -> Graph:
    """Forward, backward and SGD step of a pre-norm transformer, fp32: about 84 nodes a layer.

    Weights are external and updated in place; results that the backward pass needs are kept; gradients are summed where a
    value has several users. Views share storages, as a recorder sees them.
    """
    tape = _Tape(f"transformer_training_{layers}")
    b = tape.b
    row = 4 * tokens * width
    x = b.tensor((row,), "uint8", role="input", name="embedded")
    b.inputs.append(x)
    first = x
    for _ in range(layers):
        h = tape.op("layer_norm", (x,), row, weight=4 * width, extra=8 * tokens)
        q, k, v = (tape.op("linear", (h,), row, weight=4 * width * width) for _ in range(3))
        q, k, v = (tape.view(t) for t in (q, k, v))
        scores = tape.op("matmul", (q, k), 4 * tokens * tokens * heads)
        scores = tape.op("mul_scalar", (scores,), 4 * tokens * tokens * heads, saves_inputs=False)
        share = tape.op("softmax", (scores,), 4 * tokens * tokens * heads, saves_inputs=False, saves_output=True)
        mixed = tape.view(tape.op("matmul", (share, v), row))
        x = tape.op("add", (x, tape.op("linear", (mixed,), row, weight=4 * width * width)), row, saves_inputs=False)
        h = tape.op("layer_norm", (x,), row, weight=4 * width, extra=8 * tokens)
        h = tape.op("linear", (h,), 4 * row, weight=16 * width * width)
        h = tape.op("gelu", (h,), 4 * row)
        x = tape.op("add", (x, tape.op("linear", (h,), row, weight=16 * width * width)), row, saves_inputs=False)
    loss = tape.op("loss", (x,), 4)
    tape.backward(loss, stop_at=first)
    b.outputs.append(loss)
    return b.build()


def _op(b: GraphBuilder, op: str, inputs: tuple[int, ...], nbytes: int, phase: str = "forward") -> int:
    out = b.tensor((nbytes,), "uint8")
    b.node(op, inputs, (out,), phase=phase)
    return out


def _watts_strogatz(n: int, degree: int, rewire: float, rng: random.Random) -> list[tuple[int, int]]:
    """Edges (low, high) of a connected small-world graph."""
    edges = set()
    for v in range(n):
        for step in range(1, degree // 2 + 1):
            u = (v + step) % n
            while rng.random() < rewire or u == v or (min(u, v), max(u, v)) in edges:
                u = rng.randrange(n)
                if u != v and (min(u, v), max(u, v)) not in edges:
                    break
            edges.add((min(u, v), max(u, v)))
    return sorted(edges)


class _Tape:
    """Records forward ops and writes their backward and update ops behind them."""

    def __init__(self, name: str):
        self.b = GraphBuilder(name)
        self.entries: list[tuple[str, tuple[int, ...], int, int | None, tuple[int, ...]]] = []

    def op(
        self,
        op: str,
        inputs: tuple[int, ...],
        nbytes: int,
        *,
        weight: int = 0,
        extra: int = 0,
        saves_inputs: bool = True,
        saves_output: bool = False,
    ) -> int:
        b = self.b
        parameter = b.tensor((weight,), "uint8", role="parameter") if weight else None
        out = b.tensor((nbytes,), "uint8")
        outputs = (out, b.tensor((extra,), "uint8")) if extra else (out,)
        b.node(op, inputs if parameter is None else (*inputs, parameter), outputs)
        saved = (inputs if saves_inputs else ()) + ((out,) if saves_output else ()) + outputs[1:]
        self.entries.append((op, inputs, out, parameter, saved))
        return out

    def view(self, value: int) -> int:
        tensor = self.b.tensors[value]
        out = self.b.tensor(tensor.shape, tensor.dtype, tensor.storage)
        self.b.node("view", (value,), (out,))
        self.entries.append(("view", (value,), out, None, ()))
        return out

    def backward(self, loss: int, *, stop_at: int) -> None:
        b = self.b
        gradients: dict[int, int] = {loss: _op(b, "ones_like", (loss,), 4, "backward")}
        updates: list[tuple[int, int]] = []
        for op, inputs, out, parameter, saved in reversed(self.entries):
            gradient = gradients.pop(out)
            if parameter is not None:
                made = b.tensor((b.storages[b.tensors[parameter].storage].nbytes,), "uint8", role="gradient")
                b.node(f"{op}_weight_grad", (gradient, *saved), (made,), phase="backward")
                updates.append((parameter, made))
            for value in inputs:
                if value == stop_at:
                    continue
                if op == "view":
                    part = b.tensor(b.tensors[gradient].shape, "uint8", b.tensors[gradient].storage)
                    b.node("view", (gradient,), (part,), phase="backward")
                elif op == "add":
                    part = gradient
                else:
                    others = () if parameter is None else (parameter,)
                    part = _op(b, f"{op}_grad", (gradient, *saved, *others), b.tensors[value].shape[0], "backward")
                if value in gradients:
                    part = _op(b, "add", (gradients[value], part), b.tensors[value].shape[0], "backward")
                gradients[value] = part
        for parameter, gradient in updates:
            storage = b.tensors[parameter].storage
            out = b.tensor(b.tensors[parameter].shape, "uint8", storage)
            b.node("sgd_", (parameter, gradient), (out,), writes=(storage,), phase="optimizer")
