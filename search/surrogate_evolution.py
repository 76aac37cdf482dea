"""Evolution of a predicted score under hard limits, on whole populations of encoded architectures at once (Once-for-All's search).

Every member of every generation keeps the limits: children that do not are drawn again, a bounded number of times. Members keep the
genes of blocks that their depth does not reach, so that a stage that grows back finds what it had; they are made canonical to be judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..compiler.errors import BudgetError
from .space import Space

DRAWS = 8192  # random architectures a first population is taken from at most, in four batches
WALK = 64  # genes that a walk tries to change
ROUNDS = 40  # times that children are drawn again


@dataclass(frozen=True, slots=True)
class EvolutionSettings:
    """Once-for-All's defaults. parents: share of the population that breeds; mutations: share of the children that are mutated, the
    others being crossed; rate: chance of each gene to be redrawn; first_rate: the same for gene 0 (the resolution of elastic spaces).
    """

    population: int = 100
    generations: int = 500
    parents: float = 0.25
    mutations: float = 0.5
    rate: float = 0.1
    first_rate: float = 0.5


@dataclass(frozen=True)
class Evolved:
    """What an evolution found: canonical rows (k, genes), all different, best first, and their scores (k,); `best`: the highest score
    after each generation; `judged`: rows whose score was asked for.
    """

    rows: np.ndarray
    scores: np.ndarray
    best: np.ndarray
    judged: int


def evolve(
    space: Space,
    score: Callable[[np.ndarray], np.ndarray],
    feasible: Callable[[np.ndarray], np.ndarray],
    cheapest: np.ndarray,
    rng: np.random.Generator,
    settings: EvolutionSettings | None = None,
) -> Evolved:
    """Evolve architectures of high `score(rows)` among those for which `feasible(rows)`, both of canonical rows (n, genes).

    cheapest: rows from which a share of the first population starts, such as the smallest network at each resolution.
    Raises `BudgetError` when neither they nor random ones are feasible.
    """
    settings = settings or EvolutionSettings()
    members = feasible_population(space, feasible, cheapest, settings.population, rng)
    scores = score(space.canonical_rows(members))
    judged, best = len(members), []
    n_mutated = round(settings.population * settings.mutations)
    for _ in range(settings.generations):
        order = np.argsort(-scores, kind="stable")[: max(1, round(settings.population * settings.parents))]
        members, scores = members[order], scores[order]
        children = np.concatenate(
            [
                _kept(space, feasible, n_mutated, partial(_mutated, space, members, settings, rng)),
                _kept(space, feasible, settings.population - n_mutated, partial(_crossed, members, rng)),
            ]
        )
        judged += len(children)
        members, scores = np.concatenate([members, children]), np.concatenate([scores, score(space.canonical_rows(children))])
        _, different = np.unique(space.canonical_rows(members), axis=0, return_index=True)
        different.sort()
        members, scores = members[different], scores[different]
        best.append(scores.max())
    order = np.argsort(-scores, kind="stable")
    return Evolved(space.canonical_rows(members[order]), scores[order], np.asarray(best), judged)


def feasible_population(
    space: Space, feasible: Callable[[np.ndarray], np.ndarray], cheapest: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Up to `n` different feasible canonical rows: an equal share where random walks lead from each of `cheapest`, and one at random.

    Chance alone would give the first population of tight limits one resolution, the lowest, and evolution would not leave it.
    Raises `BudgetError` when no random row and none of `cheapest` is feasible.
    """
    starts = space.canonical_rows(np.asarray(cheapest, np.int16))
    starts = starts[feasible(starts)]
    share = -(-n // (len(starts) + 1))
    walked = _walked(space, feasible, np.repeat(starts, share, axis=0), rng)
    drawn = np.zeros((0, len(space.cardinalities)), np.int16)
    for _ in range(4):
        rows = space.sample_rows(rng, DRAWS // 4)
        drawn = np.concatenate([drawn, rows[feasible(rows)]])
        if len(drawn) >= n:
            break
    found = np.concatenate([drawn[: max(share, n - len(walked))], walked])
    if not len(found):
        raise BudgetError(
            f"neither {DRAWS:,} random architectures of {space.name} nor the {len(cheapest)} cheapest keep all limits together; loosen one"
        )
    return rng.permutation(np.unique(found, axis=0))[:n]


def _walked(space: Space, feasible: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where `rows`, feasible, get to by WALK changes of one gene each, those that break a limit not being made."""
    cards, at = np.asarray(space.cardinalities), np.arange(len(rows))
    for _ in range(WALK if len(rows) else 0):
        near, gene = rows.copy(), rng.integers(1 if len(cards) > 1 else 0, len(cards), size=len(rows))
        near[at, gene] = rng.integers(0, cards[gene])
        near = space.canonical_rows(near)
        rows = np.where(feasible(near)[:, None], near, rows)
    return rows


def _kept(space: Space, feasible: Callable[[np.ndarray], np.ndarray], n: int, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Up to `n` drawn rows that are feasible; fewer when ROUNDS draws do not give as many."""
    kept: list[np.ndarray] = []
    missing = n
    for _ in range(ROUNDS):
        if missing <= 0:
            break
        rows = draw(2 * missing)
        rows = rows[feasible(space.canonical_rows(rows))][:missing]
        kept.append(rows)
        missing -= len(rows)
    return np.concatenate(kept) if kept else np.zeros((0, len(space.cardinalities)), np.int16)


def _mutated(space: Space, parents: np.ndarray, settings: EvolutionSettings, rng: np.random.Generator, n: int) -> np.ndarray:
    rows = parents[rng.integers(len(parents), size=n)]
    redrawn = rng.random(rows.shape) < settings.rate
    redrawn[:, 0] = rng.random(n) < settings.first_rate
    return np.where(redrawn, rng.integers(0, space.cardinalities, rows.shape, dtype=np.int16), rows)


def _crossed(parents: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    a, b = parents[rng.integers(len(parents), size=(2, n))]
    return np.where(rng.random(a.shape) < 0.5, a, b)
