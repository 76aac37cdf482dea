"""MemNet (arXiv 1907.09569; CVPR 2020 as MemNAS): a cell grown block by block, and trimmed, for accuracy and memory together.

Each round takes one network and lists everything one step from it: one more block in every cell (augment), one layer less or one
connection less in one cell (trim). The ranking controller picks which `candidates` of them are trained; the best of those by
equation (4) is the next round's network. If that is a trim, the next round makes the same trim in the other networks of this one and
fine-tunes those (section 3.1). A search ends after `rounds`, or when every step has been tried.

Where this differs from the paper, which contradicts itself or says nothing there:
- Equation (4) as printed rewards memory. Here savings are positive, as in the authors' code:
  la (a - a_pre) / a_pre + lb ((m_pre - m) / m_pre + (p_pre - p) / p_pre).
- m is the peak of the planned network in bytes, which the oracle knows exactly, as it does the parameters p: both are taken from it and
  not from the controller's heads, which remain as the further tasks of equation (3).
- The reference "pre" is the best augmented network of the last round that had one; in the first round, the median of its networks.
- The controller first ranks in round `controller_from` (the paper: after two rounds); rounds before draw at random. Its scores become
  accuracies through a line fitted to the networks that were trained.
- The paper weighs all terms alike (lambda 0.5) where candidates are trained for 60 epochs. After the few epochs of the quick presets
  networks differ by halves in memory and by hundredths in accuracy, and equal weights would trim only: there la is 0.94 and lb 0.06, of
  which memory takes seven tenths and parameters three, as in the authors' code.
- Of a hundred candidates many are augmented ones. Of the few of the quick presets `grown` are, those that the controller prefers.
- Accuracies are of the validation part; the authors' code looks at the test set during the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compiler.errors import SourceError
from ..engine import Context, Outcome, Proposal
from ..evaluate import weights_path
from ..space import Architecture
from ..spaces.memnet import MemNet as MemNetSpace
from . import engine_settings

if TYPE_CHECKING:
    from .memnet_controller import Controller

_QUICK = {
    "accuracy_weight": 0.94, "memory_weight": 0.042, "params_weight": 0.018, "inherit": True, "distinct": True, "controller_from": 1,
}  # fmt: skip
PRESETS = {
    "smoke": {
        **_QUICK, "candidates": 3, "grown": 1, "rounds": 2, "augment_epochs": 1, "trim_epochs": 1, "controller_steps": 100,
        "members": 1,
    },
    "small": {
        **_QUICK, "candidates": 6, "grown": 2, "rounds": 8, "augment_epochs": 3, "trim_epochs": 2, "controller_steps": 250,
        "members": 2,
    },
    "paper": {
        "candidates": 100, "grown": 0, "rounds": 10, "augment_epochs": 60, "trim_epochs": 20, "controller_from": 2,
        "controller_steps": 250, "members": 1,
        "accuracy_weight": 0.5, "memory_weight": 0.5, "params_weight": 0.5, "inherit": False, "distinct": False,
    },
}  # fmt: skip


def selection_score(
    accuracy: float,
    memory: float,
    params: float,
    pre: tuple[float, float, float],
    *,
    accuracy_weight: float = 0.5,
    memory_weight: float = 0.5,
    params_weight: float = 0.5,
) -> float:
    """Equation (4) with the sign of its memory terms corrected; `pre`: accuracy, memory and parameters of the reference network.

    The paper weighs memory and parameters alike, with lambda_b.

    0 for the reference itself; rises with accuracy, falls with memory and parameters.
    """
    a, m, p = pre
    return accuracy_weight * (accuracy - a) / a + memory_weight * (m - memory) / m + params_weight * (p - params) / p


class MemNet:
    """`candidates` networks trained in each of `rounds`, at least `grown` of them augmented ones where there are; `augment_epochs`,
    `trim_epochs`: how long (trims start from their parent's weights, with `inherit` augmented networks do too). `accuracy_weight`: la;
    `memory_weight` and `params_weight`: lb. `distinct` leaves out blocks that only swap their layers. `members`: controllers that vote,
    each trained for `controller_steps`.
    """

    name = "memnet"
    endless = False

    def __init__(self, context: Context):
        if not isinstance(context.space, MemNetSpace):
            raise SourceError(f"engine memnet grows the cells of space memnet, not of {context.space.name}: give --space memnet")
        if not context.objectives or not context.objectives[0].maximize:
            raise SourceError("the first objective of engine memnet is what its score calls accuracy: give --objective accuracy,peak")
        self._settings = engine_settings(self.name, context, PRESETS)
        self._context, self._space = context, context.space
        self._metric = context.objectives[0].metric
        self._rng = np.random.default_rng(context.seed)
        self._round = 0
        self._network: Outcome | None = None
        self._pre: tuple[float, float, float] | None = None
        self._known: dict[Architecture, Outcome] = {}
        self._latest: list[Outcome] = []
        self._follow: int | None = None  # the gene of the trim that the next round repeats

    @staticmethod
    def quick_space(space: str, preset: str, side: int) -> dict[str, Any]:
        """Options of the space for a preset on images of `side` pixels, where none are given: {} for the paper's width and size."""
        widths = {"smoke": 8, "small": 16}
        return {"width": widths[preset], "resolution": 16} if space == MemNetSpace.name and preset in widths and side >= 16 else {}

    def ask(self) -> list[Proposal]:
        """The candidates of this round; [] after the last one."""
        if self._round == self._settings["rounds"]:
            return []
        proposals = self._same_trim() if self._follow is not None else []
        proposals = proposals or self._ranked(self._steps())
        self._round += 1
        return proposals

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._follow = None
        done = [o for o in outcomes if o.feasible and self._metric in o.values and o.values[self._metric] > 0]
        self._known.update({o.proposal.arch: o for o in done})
        if not done:
            return
        self._latest = done
        pre = self._pre or tuple(median(values) for values in zip(*map(self._told, done), strict=True))
        best = max(done, key=lambda o: self._score(*self._told(o), pre))
        grown = [o for o in done if o.proposal.origin == "augment"]
        if grown:
            self._pre = self._told(max(grown, key=lambda o: self._score(*self._told(o), pre)))
        if best.proposal.origin == "trim" and best.proposal.parent is not None:
            before, after = best.proposal.parent.genes, best.proposal.arch.genes
            self._follow = next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if b > a), None)
        self._network = best

    # ---- candidates ---------------------------------------------------------------------------------------------------

    def _steps(self) -> list[Proposal]:
        """Everything one step from the network of this round that keeps the limits and was not trained before."""
        parent = self._network.proposal.arch if self._network else None
        grown = [(arch, "augment") for arch in self._space.augment(parent, distinct=self._settings["distinct"])]
        trimmed = [(arch, "trim") for arch in self._space.trim(parent)] if parent else []
        steps = {arch: origin for arch, origin in (*grown, *trimmed) if arch not in self._known}
        archs = list(steps)
        if not archs:
            return []
        kept = self._context.constraints.feasible_rows(self._space.encode(archs))
        return [self._proposal(arch, steps[arch], self._network) for arch, keep in zip(archs, kept, strict=True) if keep]

    def _same_trim(self) -> list[Proposal]:
        """The trim that won the last round made in the others of that round, each fine-tuned from its own weights."""
        made: dict[Architecture, Proposal] = {}
        for outcome in sorted(self._latest, key=lambda o: -o.values[self._metric]):
            genes = list(outcome.proposal.arch.genes)
            genes[self._follow or 0] = 1
            arch = self._space.architecture(genes)
            if arch != outcome.proposal.arch and arch not in self._known and arch not in made:
                made[arch] = self._proposal(arch, "trim", outcome)
        if not made:
            return []
        kept = self._context.constraints.feasible_rows(self._space.encode(list(made)))
        return [proposal for proposal, keep in zip(made.values(), kept, strict=True) if keep][: self._settings["candidates"]]

    def _proposal(self, arch: Architecture, origin: str, parent: Outcome | None) -> Proposal:
        settings: dict[str, object] = {"epochs": self._settings["augment_epochs" if origin == "augment" else "trim_epochs"]}
        if parent is not None and (origin == "trim" or self._settings["inherit"]):
            settings["weights"] = weights_path(Path(), parent.proposal).as_posix()
        return Proposal(arch, parent.proposal.arch if parent else None, origin, settings)

    # ---- ranking ------------------------------------------------------------------------------------------------------

    def _ranked(self, proposals: list[Proposal]) -> list[Proposal]:
        """The `candidates` of them that the controller puts first, or random ones while it has too little to learn from."""
        wanted = self._settings["candidates"]
        if len(proposals) <= wanted:
            return proposals
        if self._round < self._settings["controller_from"] or len(self._known) < 2 or self._pre is None:
            return [proposals[i] for i in sorted(self._rng.permutation(len(proposals))[:wanted])]
        rows = self._space.encode([p.arch for p in proposals])
        costs = self._context.oracle.cost(rows, ("params", "peak"))
        accuracy = self._predicted(rows)
        scores = [self._score(*values, self._pre) for values in zip(accuracy, costs["peak"], costs["params"], strict=True)]
        order = np.argsort(-np.array(scores), kind="stable").tolist()
        grown = [i for i in order if proposals[i].origin == "augment"][: self._settings["grown"]]
        return [proposals[i] for i in [*grown, *(i for i in order if i not in grown)][:wanted]]

    def _predicted(self, rows: np.ndarray) -> np.ndarray:
        """Accuracies of encoded networks, by the controller trained on every network known so far."""
        import torch

        known = list(self._known.values())
        trained = self._space.block_features(self._space.encode([o.proposal.arch for o in known]))
        accuracy, memory, params = np.array([self._told(o) for o in known]).T
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            controller = self._controller().fit(trained, accuracy, params, memory)
            scores = controller.score(np.concatenate([trained, self._space.block_features(rows)]))
        finally:
            torch.set_num_threads(threads)
        spread = np.var(scores[: len(known)])
        slope = max(0.0, float(np.cov(scores[: len(known)], accuracy, bias=True)[0, 1] / spread)) if spread > 0 else 0.0
        return accuracy.mean() + slope * (scores[len(known) :] - scores[: len(known)].mean())

    def _controller(self) -> Controller:
        from .memnet_controller import Controller, ControllerSettings

        return Controller(
            ControllerSettings(members=self._settings["members"], steps=self._settings["controller_steps"]),
            seed=self._context.seed + self._round,
        )

    def _told(self, outcome: Outcome) -> tuple[float, float, float]:
        return outcome.values[self._metric], outcome.values["peak"], outcome.values["params"]

    def _score(self, accuracy: float, memory: float, params: float, pre: tuple[float, ...]) -> float:
        weights = {name: self._settings[name] for name in ("accuracy_weight", "memory_weight", "params_weight")}
        return selection_score(accuracy, memory, params, (pre[0], pre[1], pre[2]), **weights)
