"""MemNet's network-cross ranking controller (arXiv 1907.09569, section 3.2), and the recurrent rankers it is compared with.

An encoder GRU reads the blocks of one network; a ranking GRU reads the encodings of a list of networks and scores each in the light of
those before it. Three heads give accuracy, parameters and memory, and equation (3) is the loss: cross-entropy of the accuracies plus
lambda times the squared errors of the other two.

Where the paper leaves things open, or where measurement showed better:
- the cross-entropy is taken list-wise (ListNet, Cao et al. 2007) between softmax(ranks as normal scores / temperature) and the scores;
- heads read the encoding as well as the ranking GRU's state (a residual path), and the encoding is the encoder GRU's last state plus a
  linear map of all blocks at their places; the paper mentions neither, and the second alone raised NDCG@50 by a tenth on NAS-Bench-201;
- that map may read numbers about each network as a whole too, such as those of `memnet_paths`, which the paper does not have either. On
  NAS-Bench-201 they raised one network's NDCG@50 from .68 to .76 and its AP@50 from .60 to .66 (16 draws of 200 training cells, 15 times
  1,000 ranked in each; the differences are .080 +- .016 and .060 +- .009). Engine `memnet` gives its controller none so far;
- a GRU over a list depends on the list's order: orders are shuffled in training and averaged over at inference;
- several such networks with different weights may vote (`members`), which the paper does not do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...compiler.errors import SourceError

if TYPE_CHECKING:
    import torch

HEADS = 3


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """`kind`: "cross" is the paper's with the additions above, "double" without them, "single" has no ranking GRU. `loss` of the
    accuracy head: "listnet" or "mse". `hidden` and `embedding` are the paper's 100. `list_size` networks are ranked together, `lists` of
    them a step. `cost_weight`: lambda of equation (3). `orders`: list orders averaged at inference. `members`: networks that vote.
    """

    kind: Literal["cross", "double", "single"] = "cross"
    loss: Literal["listnet", "mse"] = "listnet"
    hidden: int = 100
    embedding: int = 100
    list_size: int = 25
    lists: int = 8
    steps: int = 250
    lr: float = 1.5e-3
    weight_decay: float = 1e-4
    temperature: float = 0.5
    cost_weight: float = 0.5
    orders: int = 8
    members: int = 1


class Controller:
    """Learns from networks that were trained, as block sequences with their accuracies and costs, and scores others."""

    def __init__(self, settings: ControllerSettings | None = None, *, seed: int = 0):
        self.settings = settings or ControllerSettings()
        self._seed = seed
        self._members: list[Any] = []

    def fit(
        self, blocks: np.ndarray, accuracy: np.ndarray, params: np.ndarray, memory: np.ndarray, whole: np.ndarray | None = None
    ) -> Controller:
        """Train anew, or go on from what was learned before when it was. Returns itself.

        `blocks`: float32 (networks, blocks, features), networks with fewer blocks padded by zero blocks at the end; the next three are
        (networks,), in any unit. `whole`: (networks, numbers), in any unit, about each network as a whole; only kind "cross" reads them,
        and `score` needs them from then on. Deterministic by the seed. Raises `SourceError` for fewer than two networks, and for `whole`
        where it was not given before or the other way about.
        """
        import torch

        if len(blocks) < 2:
            raise SourceError(f"a ranking is learned from two networks or more, not {len(blocks)}")
        ranks = _normal_scores(accuracy) if self.settings.loss == "listnet" else _standard(np.asarray(accuracy, float))
        wanted = np.stack([ranks, _standard(np.log(np.maximum(params, 1))), _standard(np.log(np.maximum(memory, 1)))], axis=1)
        targets = torch.from_numpy(wanted.astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            for i in range(self.settings.members):
                seed = self._seed * 1009 + i
                if i == len(self._members):
                    torch.manual_seed(seed)
                    numbers = 0 if whole is None or self.settings.kind != "cross" else whole.shape[1]
                    self._members.append(_network(blocks.shape[1], blocks.shape[2], numbers, self.settings))
                    if numbers:
                        self._members[i].standardize(torch.from_numpy(np.asarray(whole, np.float32)))
                _train(self._members[i], self._inputs(blocks, whole), targets, self.settings, seed)
        return self

    def score(self, blocks: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray:
        """Predicted standing of each network, higher is better: float64 (networks,), comparable within one call. Arguments as in `fit`."""
        import torch

        if not self._members:
            raise SourceError("the controller has learned nothing yet: fit it first")
        inputs = self._inputs(blocks, whole)
        n, size = len(blocks), self.settings.list_size
        total = np.zeros(n)
        orders = 1 if self.settings.kind == "single" else self.settings.orders
        with torch.no_grad():
            for member in self._members:
                member.eval()
                encoded = member.encode(*inputs)
                for order in range(orders):
                    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(order))
                    padded = torch.cat([shuffled, shuffled[: -n % size]]) if n >= size else shuffled
                    lists = padded.view(-1, min(size, n))
                    given = member.heads(encoded[lists])[..., 0].reshape(-1)[:n].double()
                    total[shuffled.numpy()] += given.numpy()
        return total / (orders * len(self._members))

    def _inputs(self, blocks: np.ndarray, whole: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks and numbers of the whole as the networks read them; no numbers are (networks, 0)."""
        import torch

        numbers = np.zeros((len(blocks), 0)) if whole is None or self.settings.kind != "cross" else whole
        known = self._members[0].numbers
        if numbers.shape != (len(blocks), known):
            raise SourceError(
                f"the controller was fitted with {known} numbers a network, not {numbers.shape[1]} for {len(numbers)} networks"
            )
        return torch.from_numpy(np.ascontiguousarray(blocks, np.float32)), torch.from_numpy(np.ascontiguousarray(numbers, np.float32))

    def state(self) -> dict[str, torch.Tensor]:
        """All weights by name, for `search.weights.save_weights`."""
        return {f"{i}.{name}": t for i, member in enumerate(self._members) for name, t in member.state_dict().items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> Controller:
        """Take weights that `state` gave. Returns itself."""
        self._members = []
        for i in range(self.settings.members):
            own = {name.partition(".")[2]: t for name, t in state.items() if name.partition(".")[0] == str(i)}
            width = self.settings.embedding
            length = own["placed.weight"].shape[1] // width if "placed.weight" in own else 1
            numbers = own["whole.weight"].shape[1] if "whole.weight" in own else 0
            member = _network(length, own["embed.weight"].shape[1], numbers, self.settings)
            member.load_state_dict(own)
            self._members.append(member)
        return self


def _network(length: int, features: int, numbers: int, settings: ControllerSettings) -> Any:
    import torch
    from torch import nn

    class Ranker(nn.Module):
        """Encoder, ranking GRU where there is one, and the heads on either or both."""

        middle: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(features, settings.embedding)
            self.encoder = nn.GRU(settings.embedding, settings.hidden, batch_first=True)
            self.ranking = nn.GRU(settings.hidden, settings.hidden, batch_first=True) if settings.kind != "single" else None
            self.placed = nn.Linear(length * settings.embedding, settings.hidden) if settings.kind == "cross" else None
            self.numbers = numbers
            if numbers:
                self.whole = nn.Linear(numbers, settings.hidden)
                self.register_buffer("middle", torch.zeros(numbers))
                self.register_buffer("scale", torch.ones(numbers))
            self.own = nn.Linear(settings.hidden, HEADS) if settings.kind != "double" else None
            self.listed = nn.Linear(settings.hidden, HEADS) if settings.kind != "single" else None

        def standardize(self, whole: torch.Tensor) -> None:
            """Read numbers as deviations from those of `whole`; the ones that are the same throughout are left out from then on."""
            deviation = whole.std(0, correction=0)
            self.middle.copy_(whole.mean(0))
            self.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0))

        def encode(self, blocks: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
            """(networks, blocks, features) and (networks, numbers) to (networks, hidden).

            The state after the last block that is not padding, and the places with the whole.
            """
            embedded = torch.relu(self.embed(blocks))
            there = (blocks != 0).any(-1)
            last = torch.where(there, torch.arange(blocks.shape[1]), 0).amax(-1)
            state = self.encoder(embedded)[0][torch.arange(len(blocks)), last]
            if self.placed is None:
                return state
            placed = self.placed(embedded.flatten(1))
            return state + torch.relu(placed + self.whole((whole - self.middle) * self.scale) if self.numbers else placed)

        def heads(self, encoded: torch.Tensor) -> torch.Tensor:
            """(lists, networks, hidden) to (lists, networks, 3)."""
            out = torch.zeros(())
            if self.own is not None:
                out = out + self.own(encoded)
            if self.ranking is not None and self.listed is not None:
                out = out + self.listed(self.ranking(encoded)[0])
            return out

    return Ranker()


def _train(member: Any, inputs: tuple[torch.Tensor, torch.Tensor], wanted: torch.Tensor, settings: ControllerSettings, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(member.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    n, size = len(wanted), min(settings.list_size, len(wanted))
    member.train()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr / 2 * (1 + math.cos(math.pi * step / settings.steps))
        chosen = torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(settings.lists)])
        drawn, places = chosen.unique(return_inverse=True)
        given = member.heads(member.encode(*(part[drawn] for part in inputs))[places])
        truth = wanted[chosen]
        if settings.loss == "listnet":
            likely = torch.softmax(truth[..., 0] / settings.temperature, dim=1)
            loss = -(likely * torch.log_softmax(given[..., 0], dim=1)).sum(1).mean()
        else:
            loss = (given[..., 0] - truth[..., 0]).square().mean()
        loss = loss + settings.cost_weight * (given[..., 1:] - truth[..., 1:]).square().mean((0, 1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def average_precision(scores: np.ndarray, accuracy: np.ndarray, k: int) -> float:
    """AP@k as MemNet defines it (section 4.3): the fraction of the k networks scored highest that are among the k best."""
    best, chosen = np.argsort(-accuracy, kind="stable")[:k], np.argsort(-scores, kind="stable")[:k]
    return len(np.intersect1d(best, chosen)) / k


def discounted_gain(scores: np.ndarray, accuracy: np.ndarray, k: int) -> float:
    """NDCG@k with the gain of the authors' code, 1 / (true rank), best rank 1; discounted by log2(1 + place), 1.0 for a perfect order."""
    rank = np.empty(len(accuracy))
    rank[np.argsort(-accuracy, kind="stable")] = np.arange(1, len(accuracy) + 1)
    discount = 1 / np.log2(np.arange(2, k + 2))
    chosen = np.argsort(-scores, kind="stable")[:k]
    return float((discount / rank[chosen]).sum() / (discount / np.arange(1, k + 1)).sum())


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Ranks as quantiles of the normal distribution; equal values share the mean of their ranks."""
    values = np.asarray(values, float)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    inverse_cdf = NormalDist().inv_cdf
    return np.array([inverse_cdf((r - 0.5) / len(values)) for r in middle[inverse]])


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-12)
