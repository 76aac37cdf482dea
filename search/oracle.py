"""The oracle: what architectures cost, exactly, a million of them a second.

Networks of a space are cut where one tensor passes (`segments`); each distinct segment is solved once by the real passes and kept, in
memory and on disk, and a batch of architectures is composed from tables by one compiled loop. A network that is not cut, or for which
the composition is no proof, goes through the real scheduler whole, and that is kept too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.errors import NeaptideError, SourceError
from ..targets.spec import Target, load_target
from .accountings import Weights, load_accounting
from .costs import Costs, CostsKind, check_metrics
from .layouts import composable_arena, plain_arena
from .least import Least, SlotFactors, least_of_sum, minimise
from .pricing import PartPricing, Priced, Pricing, StretchPricing, covering, price_all
from .segment_costs import Solved
from .segment_memory import SegmentMemory
from .segments import Cutter
from .space import Architecture, Slot, Space
from .tables import ARENA, ARENA_BOUND, BOUND, MACS, PARAMS, PEAK, SOLVED, WEIGHTS, SlotTables

if TYPE_CHECKING:
    from pathlib import Path

    from ..targets.cost import Cost
    from ..targets.database import CostDatabase
    from ..targets.predictors import OperatorPredictor
    from .predicted import PredictedCosts

CHUNK = 1024
"""Architectures whose segments are solved before what was found is kept on disk."""
SUMS = frozenset(("params", "macs", "flops", "weight_bytes", "flash"))
"""Metrics that add up over nodes."""
FUSED = 600
"""Most values of all slots together for which the least prediction is looked for: fusing the operators of each takes a part of a second."""
DEFAULT_METRICS = ("params", "macs", "peak")


class Oracle:
    """Costs of the architectures of `space`, in batches.

    `target`: a name, a TOML file or a `Target`, for `latency` and `instructions`, which come from `predictor` (what `neaptide cost fit`
    wrote; None: fitted when first asked) to what `database` (None: the user's own) knows of the target.
    `accounting`: what a peak counts (`accountings.ACCOUNTINGS`), with `weights` in "flash" or "ram" (None: where that accounting puts
    them; `lifetime` in flash). `memory`: the folder that keeps solved segments for other processes (None: `$NEAPTIDE_CACHE` or the
    user's cache folder; False: nowhere); segments of spaces of the user's own stay in this process. `workers`: processes that solve what
    is not known yet. `time_limit`: seconds for the order of one segment.
    """

    def __init__(
        self,
        space: Space,
        target: str | Target | None = None,
        *,
        accounting: str = "lifetime",
        weights: Weights | None = None,
        database: CostDatabase | None = None,
        predictor: OperatorPredictor | str | Path | None = None,
        memory: Any = None,
        workers: int = 1,
        time_limit: float = 2.0,
    ):
        if weights not in (None, "flash", "ram"):
            raise SourceError(f'weights={weights!r}: they lie in "flash" or in "ram"')
        self.space = space
        self.target = load_target(target) if isinstance(target, str) else target
        self.accounting = load_accounting(accounting)
        self.weights: Weights = weights or self.accounting.weights
        self.database = database
        self._predictor = predictor
        self._predicted: PredictedCosts | None = None
        self.workers = workers
        slots = space.slots()
        stretches = () if slots else space.stretches()
        parts = () if slots else space.parts()
        everything = Slot("", tuple(range(len(space.cardinalities))))
        known = self.accounting, self.weights, time_limit
        self._cut = bool(slots)
        self._pricing = (StretchPricing if stretches else Pricing)(space, Cutter(space.name, slots or stretches), *known)
        self._tables = SlotTables(slots or stretches or (everything,), space.cardinalities)
        self._whole_pricing = Pricing(space, Cutter(space.name, ()), *known)
        self._whole = SlotTables((everything,), space.cardinalities, dense_codes=0) if slots or stretches else self._tables
        self._part_pricing = PartPricing(space, Cutter(space.name, parts), *known)
        self._parts = SlotTables(parts, space.cardinalities) if parts else self._tables
        self._solved: dict[bytes, Solved] = {}
        self._arenas: dict[tuple[bytes, bool], tuple[int, int]] = {}
        self._keys: list[bytes] = []
        self._least: dict[str, Least] = {}
        self._unknown: set[str] = set()
        self._key_ids: dict[bytes, int] = {}
        self._memory = None if memory is False else SegmentMemory.of(space, [*known[1:], self.accounting.name], memory)
        self._recall()

    @property
    def composed(self) -> bool:
        """Whether costs are put together from those of segments between cuts, or of stretches."""
        return self._whole is not self._tables

    @property
    def _all_tables(self) -> tuple[SlotTables, SlotTables, SlotTables]:
        return self._tables, self._whole, self._parts

    @property
    def solved_whole(self) -> int:
        """How many architectures went through the scheduler whole, because they are not cut or composition left their peak open."""
        return self._whole.used if self.composed else 0

    # ---- costs ------------------------------------------------------------------------------------------------------

    def cost(self, archs: Architecture | Sequence[Architecture] | np.ndarray, metrics: Iterable[str] = DEFAULT_METRICS) -> Costs:
        """Costs of `archs`: an architecture, several, or their canonical genes as integers (n, genes), as `encode` and `sample_rows` give.

        Raises `SourceError` for genes out of range, architectures of another space, and unknown metrics.
        """
        rows = self.rows(archs)
        asked = check_metrics(metrics)
        static = set(asked) - {"latency", "instructions"}
        found = self._sums(rows) if static <= SUMS else self._static(rows, "arena" in asked)
        if {"macs", "flops"} & set(asked) and (found[MACS] < 0).any():
            raise SourceError(f"multiply-adds of {', '.join(sorted(self._unknown))} are not known, and so not those of {self.space.name}")
        values: dict[str, Any] = {
            "params": found[PARAMS],
            "macs": found[MACS],
            "flops": 2 * found[MACS],
            "weight_bytes": found[WEIGHTS],
            "flash": found[WEIGHTS],
            "peak": found[PEAK],
            "arena": found[ARENA],
        }
        kinds: dict[str, CostsKind] = dict.fromkeys(values, "exact")
        proven = found[PEAK] == found[BOUND]
        more: dict[str, Any] = {}
        if "peak" in asked:
            in_ram = found[WEIGHTS] if self._adds_weights else 0
            values["peak"] = found[PEAK] + in_ram
            more.update(peak_bound=found[BOUND] + in_ram, proven=proven)
            kinds["peak"] = "exact" if proven.all() else "bound"
        if "arena" in asked:
            more["arena_bound"] = found[ARENA_BOUND]
            kinds["arena"] = "exact" if (found[ARENA] == found[ARENA_BOUND]).all() else "bound"
        errors = {}
        for name in {"latency", "instructions"} & set(asked):
            values[name], errors[name] = self._predict(name, rows)
            kinds[name] = "predicted"
        kept = {name: values[name] for name in asked}
        shown: dict[str, CostsKind] = {name: kinds[name] for name in kept}
        return Costs(len(rows), **kept, **more, kinds=MappingProxyType(shown), errors=MappingProxyType(errors))

    def measure(self, arch: Architecture, **options: Any) -> Cost:
        """`arch`, freshly initialised, built for the target and run there; `options` go to `neaptide.measure`. Kind "measured", or "bound"
        where the target is not here. What it teaches is kept in the database of this oracle.
        """
        import torch

        from ..targets.measure import measure

        example = torch.zeros(self.space.input_shape(arch))
        options = {"name": f"{self.space.name} {arch.digest}", "database": self.database, **options}
        return measure(self.space.module(arch).eval(), (example,), target=self._on_target("measure"), **options)

    def _predict(self, metric: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from .predicted import PredictedCosts

        target = self._on_target(metric)
        if self._predicted is None:
            self._predicted = PredictedCosts(self.space, target, database=self.database, predictor=self._predictor, memory=self._memory)
        unit = {"latency": "seconds", "instructions": "instructions"}[metric]
        if self._predicted.unit != unit:
            other = {"seconds": "latency", "instructions": "instructions"}[self._predicted.unit]
            raise SourceError(f"{target.name} is measured in {self._predicted.unit}; ask for {other!r} in place of {metric!r}")
        return self._predicted.predict(rows)

    def _on_target(self, what: str) -> Target:
        if self.target is None:
            raise SourceError(f"{what} needs a target: Oracle(space, 'stm32f746'); `neaptide targets` lists them")
        return self.target

    def rows(self, archs: Architecture | Sequence[Architecture] | np.ndarray) -> np.ndarray:
        """`archs` as int16 genes (n, genes), each in its range."""
        cardinalities = self.space.cardinalities
        if isinstance(archs, np.ndarray):
            rows = np.ascontiguousarray(archs, np.int16)
            if rows.ndim != 2 or rows.shape[1] != len(cardinalities):
                raise SourceError(f"rows of {self.space.name} have shape (n, {len(cardinalities)}), not {archs.shape}")
            if len(rows):
                over = np.flatnonzero(rows.view(np.uint16).max(axis=0) >= np.asarray(cardinalities))
                for i in over[:1]:
                    bad = rows[(rows[:, i] < 0) | (rows[:, i] >= cardinalities[i]), i][0]
                    raise SourceError(f"gene {i} of an architecture of {self.space.name} is {bad}; it takes 0 to {cardinalities[i] - 1}")
            return rows
        listed = [archs] if isinstance(archs, Architecture) else archs
        for other in {arch.space for arch in listed} - {self.space.name}:
            raise SourceError(f"an architecture of {other} has no cost in {self.space.name}")
        return self.space.encode(listed)

    # ---- the least that can be reached ------------------------------------------------------------------------------

    def least(self, metric: str) -> Least:
        """The least value of `metric` that an architecture of the space can have, and an architecture.

        Exact where costs are composed; the result unpacks as (value, architecture), and its `kind` says "exact", "predicted" or "bound".
        A bound holds for every architecture; the one beside it is merely a good one. Solves each segment of the space once.
        """
        (metric,) = check_metrics([metric])
        if metric not in self._least:
            self._least[metric] = self._find_least(metric)
        return self._least[metric]

    def _find_least(self, metric: str) -> Least:
        if metric in ("latency", "instructions"):
            return self._least_predicted(metric)
        tables, n = self._parts, len(self.space.cardinalities)
        own = tables is self._tables
        factors = SlotFactors(tables, self.space)
        if len(factors.rows):
            self._fill(tables, self._pricing if own else self._part_pricing, factors.rows)
        index = tables.index(factors.rows)
        laid_out = metric == "arena" and own and (self._cut or not self.composed)
        if laid_out:
            self._place(tables, factors.rows[(tables.table[index, SOLVED] >= 0).all(axis=1)], self._cut)
        column = tables.table[index].transpose(2, 0, 1)
        sums = {"params": PARAMS, "macs": MACS, "flops": MACS, "weight_bytes": WEIGHTS, "flash": WEIGHTS}
        if metric in sums:
            found = minimise(factors.of(column[sums[metric]]), n, np.add)
        elif metric == "peak" and self._adds_weights:
            found = least_of_sum(factors.of(column[BOUND]), factors.of(column[WEIGHTS]), n)
        else:
            value, bound = (ARENA, ARENA_BOUND) if laid_out else (PEAK, BOUND)
            found = minimise(factors.of(column[value]), n, np.maximum)
            lower = minimise(factors.of(column[bound]), n, np.maximum)
            found = (lower[0], found[1]) if lower and found else None
        value, genes = found or (0, np.zeros(n, np.int64))
        if metric == "flops":
            value *= 2
        (arch,) = self.space.decode(genes[None])
        reached = self.cost([arch], metrics=(metric,))[metric][0].item()
        return Least(value, arch, "exact" if reached == value else "bound")

    def _least_predicted(self, metric: str) -> Least:
        """The least prediction, where the space has few segments; else no more than 0 as a bound, and the network of fewest operations."""
        tables = SlotTables(self.space.slots(), self.space.cardinalities)
        if not self._cut or tables.sparse or tables.used > FUSED:
            return Least(0.0, self.least("macs").arch, "bound")
        factors = SlotFactors(tables, self.space)
        self._predict(metric, factors.rows)
        assert self._predicted is not None
        parts = self._predicted.parts(factors.rows)
        found = None if parts is None else minimise(factors.of(parts), len(self.space.cardinalities), np.add)
        if found is None:
            return Least(0.0, self.least("macs").arch, "bound")
        return Least(found[0], self.space.decode(found[1][None])[0], "predicted")

    # ---- composition ------------------------------------------------------------------------------------------------

    @property
    def _adds_weights(self) -> bool:
        return self.weights == "ram" and self.accounting.on_top

    def _sums(self, rows: np.ndarray) -> np.ndarray:
        """As `_static`, where only sums are of use: no order is looked for in a space whose networks have parts, but no cuts."""
        if self._parts is self._tables:
            return self._static(rows, False)
        found = self._parts.compose(rows)
        unknown = found[SOLVED] < 0
        if unknown.any():
            self._fill(self._parts, self._part_pricing, rows[unknown])
            found = self._parts.compose(rows)
        return found

    def _static(self, rows: np.ndarray, arena: bool) -> np.ndarray:
        """int64 (8, n): columns as in `tables`, everything solved."""
        found = self._tables.compose(rows)
        unknown = np.flatnonzero(found[SOLVED] < 0)
        if len(unknown) and self.composed:
            unknown = unknown[self._whole.compose(rows[unknown])[SOLVED] < 0]
        if len(unknown):
            self._fill(self._tables, self._pricing, rows[unknown])
            found = self._tables.compose(rows)
        if arena and (self._cut or not self.composed):
            self._place(self._tables, rows[found[SOLVED] >= 0], self._cut)
            found = self._tables.compose(rows)
        if self.composed:
            open_ = (found[SOLVED] < 0) | (found[PEAK] > found[BOUND])
            if arena:
                open_ |= (found[ARENA] > found[ARENA_BOUND]) | (not self._cut)
            self._solve_whole(rows, np.flatnonzero(open_), found, arena)
        assert (found[BOUND] <= found[PEAK]).all()
        if arena and self.accounting.name == "lifetime":
            assert (found[PEAK] <= found[ARENA]).all() and (found[ARENA_BOUND] <= found[ARENA]).all()
        return found

    def _solve_whole(self, rows: np.ndarray, which: np.ndarray, found: np.ndarray, arena: bool) -> None:
        """Price architectures `which` as a whole and write them into `found`, keeping what composition found where that is better."""
        if not len(which):
            return
        self._fill(self._whole, self._whole_pricing, rows[which])
        if arena:
            self._place(self._whole, rows[which], False)
        whole = self._whole.compose(rows[which])
        before = found[:, which]
        composed = before[SOLVED] >= 0
        kept = composed & (before[PEAK] <= whole[PEAK])
        whole[PEAK, kept] = before[PEAK, kept]
        whole[BOUND] = np.where(composed, np.maximum(whole[BOUND], before[BOUND]), whole[BOUND])
        kept = composed & (before[ARENA] <= whole[ARENA]) & self._cut
        whole[ARENA : ARENA_BOUND + 1, kept] = before[ARENA : ARENA_BOUND + 1, kept]
        found[:, which] = whole

    def _fill(self, tables: SlotTables, pricing: Pricing, rows: np.ndarray) -> None:
        """Solve every segment of `rows` that `tables` lacks, building few networks: those with most of what is lacking first."""
        rows = np.unique(rows, axis=0)
        for i in range(0, len(rows), CHUNK):
            part = rows[i : i + CHUNK]
            index = tables.index(part)
            chosen = covering(part, index, tables.table[index, SOLVED] < 0)
            new: list[tuple[int, bytes, Priced]] = []
            answers = price_all(pricing, chosen, self._solved, workers=self.workers)
            for (row, _), (reason, priced, keys) in zip(chosen, answers, strict=True):
                if reason:
                    continue
                self._check_promise(tables, row, keys)
                for one in priced:
                    key = tables.key(one.slot, row)
                    self._write(tables, int(tables.at(one.slot, [key])[0]), one)
                    new.append((one.slot, key, one))
            if self._memory is not None and new:
                self._memory.put(next(i for i, known in enumerate(self._all_tables) if known is tables), new)

    def _write(self, tables: SlotTables, at: int, one: Priced) -> None:
        peak, bound = (one.solved.peak, one.solved.bound) if one.price is None else (one.price, one.price)
        if tables is not self._parts or tables is self._tables:
            self._solved.setdefault(one.key, one.solved)
        entry = tables.table[at]
        entry[[PEAK, BOUND]] = peak, bound
        entry[[PARAMS, MACS, WEIGHTS]] = one.work.params, one.work.macs, one.work.weight_bytes
        entry[SOLVED] = self._key_id(one.key)
        self._unknown |= {one.work.unknown} - {""}

    def _key_id(self, key: bytes) -> int:
        if key not in self._key_ids:
            self._key_ids[key] = len(self._keys)
            self._keys.append(key)
        return self._key_ids[key]

    def _check_promise(self, tables: SlotTables, row: np.ndarray, keys: list[bytes]) -> None:
        """Raise `NeaptideError` when a slot whose genes were met before now has other nodes: the space's `slots()` are wrong."""
        for slot, (at, key) in enumerate(zip(tables.index(row[None])[0], keys, strict=True)):
            known = tables.table[at, SOLVED]
            if known >= 0 and self._keys[known] != key:
                (arch,) = self.space.decode(row[None])
                raise NeaptideError(
                    f"slot {tables.slots[slot].scope!r} of space {self.space.name} depends on more than its genes "
                    f"{tables.slots[slot].genes}: in {self.space.text(arch)} its nodes are others than in an architecture with equal ones"
                )

    # ---- arenas -----------------------------------------------------------------------------------------------------

    def _place(self, tables: SlotTables, rows: np.ndarray, ends: bool) -> None:
        """Lay out each segment of `rows` that has no arena yet."""
        if not len(rows):
            return
        at = np.unique(tables.index(np.unique(rows, axis=0)))
        new: list[tuple[bytes, bool, tuple[int, int]]] = []
        for r in at[tables.table[at, ARENA] < 0].tolist():
            key = self._keys[tables.table[r, SOLVED]]
            if (key, ends) not in self._arenas:
                solved = self._solved_as(key, tables, rows)
                self._arenas[key, ends] = composable_arena(solved) if ends else plain_arena(solved)
                new.append((key, ends, self._arenas[key, ends]))
            tables.table[r, [ARENA, ARENA_BOUND]] = self._arenas[key, ends]
        if self._memory is not None and new:
            self._memory.put_arenas(new)

    def _solved_as(self, key: bytes, tables: SlotTables, rows: np.ndarray) -> Solved:
        """The segment of `rows` with planning key `key`: solved by this process, kept by another, or solved again where that is lost."""
        if key not in self._solved and self._memory is not None and (kept := self._memory.solved(key)) is not None:
            return kept
        if key not in self._solved:
            tables.table[tables.table[:, SOLVED] == self._key_ids[key], SOLVED] = -1
            self._fill(tables, self._whole_pricing if tables is self._whole else self._pricing, rows)
        return self._solved[key]

    # ---- memory -----------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        if self._memory is None:
            return
        for kind, slot, genes, keys, values in self._memory.rows():
            tables = self._all_tables[kind]
            at = tables.at(slot, genes)
            tables.table[at[:, None], [PEAK, BOUND, PARAMS, MACS, WEIGHTS]] = values
            tables.table[at, SOLVED] = [self._key_id(key) for key in keys]
        self._arenas.update(self._memory.arenas())
