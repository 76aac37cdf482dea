"""Predicted costs of batches: the fused operators of each segment, priced from the cost database, summed over a network.

TVM fuses operators along a chain and never past a tensor that several operators read; a segment is therefore fused alone, once for each
value of its slot's genes, and its operators are those that the whole network has there, unless a slot begins with a pointwise operator
that the network would fuse into the slot before. `PredictedCosts.check` tells the two apart on one network, and is asked before a
space's first prediction; where they differ its networks are fused whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..compiler.errors import MissingExtraError, SourceError
from ..compiler.graph import WEIGHT_ROLES, Graph, Node
from ..targets.database import CostDatabase
from ..targets.predictors import OperatorPredictor, fit_operators, load_predictor
from ..targets.remember import features
from ..targets.spec import Target
from .segment_memory import SegmentMemory
from .segments import Cutter, Segment, as_graph
from .space import Slot, Space
from .tables import SlotTables

Operators = Mapping[str, int]


class PredictedCosts:
    """Costs of `space` on `target` by `predictor` (None: fitted to what `database` knows of it, the user's own when None)."""

    def __init__(
        self,
        space: Space,
        target: Target,
        *,
        database: CostDatabase | None = None,
        predictor: OperatorPredictor | str | Path | None = None,
        memory: SegmentMemory | None = None,
    ):
        self.space, self.target = space, target
        self.predictor = operator_predictor(target, database, predictor)
        self._memory = memory
        slots = space.slots()
        if slots and not self.check(slots):
            slots = ()
        everything = Slot("", tuple(range(len(space.cardinalities))))
        self._cutter = Cutter(space.name, slots)
        self._tables = SlotTables(slots or (everything,), space.cardinalities)
        self._whole = Cutter(space.name, ())
        self._fused: dict[bytes, Operators] = {}
        self._costs = np.full((len(self._tables.table), 3), np.nan)
        self._networks: dict[bytes, np.ndarray] = {}

    @property
    def unit(self) -> str:
        """ "instructions" or "seconds", as the target is measured."""
        return self.predictor.unit

    def check(self, slots: Sequence[Slot]) -> bool:
        """Whether the segments of the first architecture, fused one by one, have the operators of the network fused as a whole."""
        (arch,) = self.space.decode(np.zeros((1, len(self.space.cardinalities)), np.int16))
        graph = self.space.graph(arch)
        cut = Cutter(self.space.name, slots).cut(graph)
        if isinstance(cut, str):
            return False
        parts: Counter[str] = Counter()
        for segment in cut:
            parts.update(fused_operators(as_graph(segment)) if segment.nodes else {})
        return parts == Counter(fused_operators(graph))

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Costs of architectures (n, genes) in `unit`, and their expected relative errors, NaN where none is known; each (n,)."""
        index = self._tables.index(rows)
        if len(self._costs) < len(self._tables.table):
            self._costs = np.concatenate([self._costs, np.full((len(self._tables.table) - len(self._costs), 3), np.nan)])
        uncut: dict[int, np.ndarray] = {}
        for i in np.flatnonzero(np.isnan(self._costs[index, 0]).any(axis=1)):
            if np.isnan(self._costs[index[i], 0]).any():
                whole = self._fill(rows[i], index[i])
                if whole is not None:
                    uncut[int(i)] = whole
        found = self._costs[index].sum(axis=1)
        for i, whole in uncut.items():
            found[i] = whole
        values, shares, unknown = found.T
        parts = np.divide(shares, values, out=np.zeros(len(rows)), where=values > 0)
        sums, unseen = self.predictor.sums, self.predictor.unseen
        errors = np.where(unknown > 0, np.maximum(parts, unseen.error if unseen else 0.0), sums.error if sums else np.nan)
        return values, errors

    def parts(self, rows: np.ndarray) -> np.ndarray | None:
        """Costs of the slots of architectures that `predict` has seen, (n, slots); None where some of their networks are not cut."""
        found = self._costs[self._tables.index(rows), 0]
        return None if np.isnan(found).any() or len(self._tables.slots) != len(self.space.slots()) else found

    def _fill(self, row: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        """Price the segments of one architecture that are not priced yet; the price of the whole where it is not cut."""
        if row.tobytes() in self._networks:
            return self._networks[row.tobytes()]
        (arch,) = self.space.decode(row[None])
        graph = self.space.graph(arch)
        cut = self._cutter.cut(graph)
        if isinstance(cut, str):
            whole = self._whole.cut(graph)
            assert not isinstance(whole, str)
            self._networks[row.tobytes()] = self._price(whole[0])
            return self._networks[row.tobytes()]
        for segment in cut:
            if np.isnan(self._costs[index[segment.slot], 0]):
                self._costs[index[segment.slot]] = self._price(segment) if segment.nodes else 0.0
        return None

    def _price(self, segment: Segment) -> np.ndarray:
        """Cost, cost times expected error, and how many operators were never measured."""
        graph = as_graph(segment)
        key = program_key(graph)
        if key not in self._fused:
            known = self._memory.operators(key) if self._memory is not None else None
            self._fused[key] = fused_operators(graph) if known is None else known
            if known is None and self._memory is not None:
                self._memory.put_operators(key, self._fused[key])
        operators = self._fused[key]
        costs, errors, known_ones = self.predictor.predict_all(list(operators), [features(s) for s in operators])
        shares = costs * np.array(list(operators.values()), float)
        return np.array([shares.sum(), shares @ errors, (~known_ones).sum()], float)


def fused_operators(graph: Graph) -> Operators:
    """How often each fused operator occurs in `graph`, whose weights need no values. Raises `MissingExtraError` without TVM."""
    if find_spec("tvm") is None:
        raise MissingExtraError("apache-tvm", "mcu", "pricing what was not measured as a whole")
    import torch

    from ..targets.tvm.fused_graph import fused_program
    from ..targets.tvm.importer import to_relax
    from ..targets.tvm.lower import signature

    def weight(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        kind = getattr(torch, dtype)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)) if kind.is_floating_point else torch.zeros(shape, dtype=kind)

    external = [t for t in graph.tensors if graph.definer[t.id] < 0 and graph.storages[t.storage].role in WEIGHT_ROLES]
    runnable = replace(graph, values={t.id: weight(t.shape, t.dtype) for t in external})
    args = [weight(graph.tensors[t].shape, graph.tensors[t].dtype) for t in graph.inputs]
    program = fused_program(to_relax(runnable.to_fx(), args), name=graph.name)
    names = {symbol: signature(symbol, func) for symbol, func in program.kernels.items()}
    return Counter(names.get(node.op, node.op) for node in program.graph.nodes if not program.graph.is_view(node))


def program_key(graph: Graph) -> bytes:
    """16 bytes that are equal for graphs of equal operators on equal shapes, whatever their weights and scopes are called."""
    parts = [(node.op, _wiring(graph, node), str(dict(node.attrs))) for node in graph.nodes]
    return blake2b(repr((parts, graph.outputs)).encode(), digest_size=16).digest()


def _wiring(graph: Graph, node: Node) -> list[tuple[int, tuple[int, ...], str]]:
    """What a node reads and makes: number, shape and type of each tensor; weights have no number."""
    external = {t for t in node.inputs if graph.definer[t] < 0 and graph.storages[graph.tensors[t].storage].role in WEIGHT_ROLES}
    windows = ((-1 if t in external else t, graph.tensors[t]) for t in (*node.inputs, *node.outputs))
    return [(t, tensor.shape, tensor.dtype) for t, tensor in windows]


def operator_predictor(
    target: Target, database: CostDatabase | None, given: OperatorPredictor | str | Path | None = None
) -> OperatorPredictor:
    """`given`, or the predictor in that file; None: one fitted to what `database` (None: the user's own) knows of operators on `target`."""
    if given is None:
        boosting = find_spec("sklearn") is not None
        if database is not None:
            return fit_operators(database, target=target.name, boosting=boosting)
        with CostDatabase() as own:
            return fit_operators(own, target=target.name, boosting=boosting)
    known = given if isinstance(given, OperatorPredictor) else load_predictor(given)
    if not isinstance(known, OperatorPredictor) or known.target != target.name:
        raise SourceError(f"the predictor is not one of operators on {target.name}; `neaptide cost fit --target {target.name}` makes one")
    return known
