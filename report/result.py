"""The result of `neaptide.analyze`: every number with its exact meaning, and its ways out to screens and files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..compiler.output_files import write_bytes, write_text

if TYPE_CHECKING:
    from ..compiler.graph import Graph
    from ..passes.allocate import Plan
    from ..passes.attribution import LiveStorage, ModuleRow
    from ..passes.liveness import Lifetimes
    from ..passes.schedule import Schedule
    from .table import AnalysisView

FORMAT = "neaptide.analysis"
VERSION = 1


@dataclass(frozen=True)
class Analysis:
    """What a model needs. All memory is in bytes.

    The peaks count storages born in the graph (activations, outputs, gradients and optimizer state made on the way) plus kernel
    workspace, counted the same way in every one of them. Weights, and gradients or optimizer state that exist before the first
    node, are in none of them. Graph inputs are in them only under `inputs_policy="planned"`.

    `eager_peak`: peak of the traced order with the lifetimes Python gives, references held past the last use counted; None when
    the graph did not come from a recording. `graph_peak`: peak of the traced order, each storage freed after its last use.
    `planned_peak`: peak of the order in use (`order`: `best` or `traced`). `lower_bound`: no order has a lower peak.
    `optimal`: the order in use is proven best (`planned_peak == lower_bound` or an exhaustive search ended). `arena`: height of
    the static layout of the order in use. Always `lower_bound <= planned_peak <= graph_peak` and `planned_peak <= arena`.

    `weights`: parameters, buffers and constants. `state`: gradients and optimizer state that exist before the first node.
    `inputs`: all graph inputs. `workspace`: kernel workspace at the peak of the order in use; `activations`: everything else
    counted there, so `planned_peak == activations + workspace`. `total_peak`: `weights + state + planned_peak`, plus `inputs`
    when they are not inside the peak.

    `params`: elements of the parameters. `macs`: multiply-adds of matrix products and convolutions; `flops` is 2 per
    multiply-add; `elementwise_flops` counts all other arithmetic apart. `unknown_ops`: how often each op without a formula ran
    (its work is in none of the counts).

    `at_peak`: what is alive at the peak, largest first. `by_module`: the module tree. `peak_node`: id of the node that runs at
    the peak of the order in use. `kinds`: per number, how it was obtained. `provenance`: versions, ISA, threads.
    """

    name: str
    mode: str
    device: str
    order: str
    inputs_policy: str
    eager_peak: int | None
    graph_peak: int
    planned_peak: int
    lower_bound: int
    optimal: bool
    arena: int
    weights: int
    state: int
    inputs: int
    activations: int
    workspace: int
    total_peak: int
    params: int
    macs: int
    flops: int
    elementwise_flops: int
    unknown_ops: Mapping[str, int] = field(repr=False)
    peak_node: int
    at_peak: tuple[LiveStorage, ...] = field(repr=False)
    by_module: tuple[ModuleRow, ...] = field(repr=False)
    kinds: Mapping[str, str] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    graph: Graph = field(repr=False)
    schedule: Schedule = field(repr=False)
    plan: Plan = field(repr=False)
    eager: Lifetimes | None = field(repr=False)
    traced: Lifetimes = field(repr=False)
    planned: Lifetimes = field(repr=False)

    @property
    def bytes_by_role(self) -> dict[str, int]:
        """Bytes of all storages of the graph per role, alive together or not; the roles are those of `Storage`."""
        return self.graph.bytes_by_role()

    @property
    def assumptions(self) -> list[dict[str, str]]:
        """What had to be assumed about values while tracing, as `{"op", "at", "what"}`; the numbers hold for data that agrees."""
        return [dict(a) for a in self.graph.meta.get("assumptions", ())]

    def table(self, depth: int | None = None, width: int | None = None) -> str:
        """Summary, peak and module tree as text, modules down to `depth` (None: a screenful), `width` columns (None: the terminal's)."""
        from .table import render_text

        return render_text(self.rich(depth), width)

    def rich(self, depth: int | None = None) -> AnalysisView:
        """`table` as a rich renderable, in colour."""
        from .table import AnalysisView

        return AnalysisView(self, depth)

    def __rich__(self) -> AnalysisView:
        return self.rich()

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Versioned JSON values (`format: neaptide.analysis`): numbers, what is alive at the peak, modules, order, offsets."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "mode": self.mode,
            "device": self.device,
            "order": self.order,
            "inputs_policy": self.inputs_policy,
            "eager_peak": self.eager_peak,
            "graph_peak": self.graph_peak,
            "planned_peak": self.planned_peak,
            "lower_bound": self.lower_bound,
            "optimal": self.optimal,
            "arena": self.arena,
            "weights": self.weights,
            "state": self.state,
            "inputs": self.inputs,
            "activations": self.activations,
            "workspace": self.workspace,
            "total_peak": self.total_peak,
            "params": self.params,
            "macs": self.macs,
            "flops": self.flops,
            "elementwise_flops": self.elementwise_flops,
            "unknown_ops": dict(self.unknown_ops),
            "peak_at": self._peak_at(),
            "at_peak": [
                {
                    "storage": r.storage,
                    "nbytes": r.nbytes,
                    "share": r.share,
                    "role": r.role,
                    "name": r.name,
                    "shape": list(r.shape),
                    "dtype": r.dtype,
                    "node": r.node,
                    "op": r.op,
                    "scope": r.scope,
                    "source": r.source,
                }
                for r in self.at_peak
            ],
            "by_module": [
                {
                    "path": m.path,
                    "depth": m.depth,
                    "kind": m.kind,
                    "nodes": m.nodes,
                    "params": m.params,
                    "weights": m.weights,
                    "macs": m.macs,
                    "born": m.born,
                    "at_peak": m.at_peak,
                    "share": m.share,
                    "shape": list(m.shape),
                }
                for m in self.by_module
            ],
            "schedule": {"order": list(self.schedule.order), "method": self.schedule.method, "seconds": self.schedule.seconds},
            "plan": {
                "alignment": self.plan.alignment,
                "lower_bound": self.plan.lower_bound,
                "optimal": self.plan.optimal,
                "offsets": {str(s): int(o) for s, o in self.plan.offsets.items()},
                "workspace_offsets": {str(v): int(o) for v, o in self.plan.workspace_offsets.items()},
            },
            "kinds": dict(self.kinds),
            "assumptions": self.assumptions,
            "provenance": dict(self.provenance),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to `path`, whole or not at all."""
        write_text(path, self.to_json())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the interactive report, one file that needs no network, to `path`, whole or not at all."""
        from .html import render_html

        write_text(path, render_html(self))

    def save_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace for ui.perfetto.dev or chrome://tracing (one step is one microsecond) to `path`, whole or not at all."""
        from .chrome_trace import chrome_trace

        write_text(path, json.dumps(chrome_trace(self)))

    def save_memory_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write a snapshot for pytorch.org/memory_viz, in the form of `torch.cuda.memory._snapshot()`, whole or not at all."""
        from .memory_snapshot import snapshot_bytes

        write_bytes(path, snapshot_bytes(self))

    def save_dot(self, path: str | os.PathLike[str]) -> None:
        """Write the graph for Graphviz, clustered by module and coloured by what is alive at the peak, whole or not at all."""
        from .dot import to_dot

        write_text(path, to_dot(self))

    def _repr_html_(self) -> str:
        from .notebook import notebook_html

        return notebook_html(self)

    def _peak_at(self) -> dict[str, Any] | None:
        if self.peak_node < 0:
            return None
        node = self.graph.nodes[self.peak_node]
        return {"node": node.id, "step": self.planned.peak_step, "op": node.op, "scope": node.scope, "source": node.source}
