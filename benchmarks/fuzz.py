"""Every claim about passes on seeded random graphs, by the hundred thousand, against brute force.

`python -m benchmarks.fuzz [--examples 100000] [--seconds N] [--seed 0] [--workers N] [--quick] [--json PATH]`. Stops at the first
counterexample, prints it as JSON with the seed that makes it again, and exits with 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from neaptide.compiler.graph import Graph
from neaptide.testing import generate
from neaptide.testing.properties import PROPERTIES

from .figures import Figure, finish

CHUNK = 50
LARGE_EVERY = 10


@dataclass(frozen=True)
class Counterexample:
    """A graph for which a claim does not hold, and what was said."""

    seed: int
    claim: str
    message: str
    graph: str


@dataclass(frozen=True)
class Chunk:
    """What a run of seeds gave: seconds per claim and kinds of graphs seen, or the counterexample that ended it."""

    examples: int
    seconds: dict[str, float]
    kinds: dict[str, int]
    counterexample: Counterexample | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description="Every claim about passes on seeded random graphs, against brute force.")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after this long")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first graph")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="2,000 examples")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    wanted = 2_000 if options.quick else options.examples

    started = time.perf_counter()
    done, seconds, kinds = 0, dict.fromkeys((claim.__name__ for claim in PROPERTIES), 0.0), dict.fromkeys(kinds_of(None), 0)
    for chunk in _run(range(options.seed, options.seed + wanted), options.workers, started + options.seconds):
        done += chunk.examples
        for name, spent in chunk.seconds.items():
            seconds[name] += spent
        for name, count in chunk.kinds.items():
            kinds[name] += count
        if chunk.counterexample:
            return report(chunk.counterexample)
    elapsed = time.perf_counter() - started
    rows = [(name.replace("_", " "), f"{done:,}", f"{spent:.0f}") for name, spent in seconds.items()]
    figures = [Figure("random graphs that hold every claim", f"{wanted:,}", f"{done:,} in {elapsed:.0f} s, none wrong", done >= wanted)]
    notes = [
        "Graphs seen with " + ", ".join(f"{name}: {count:,}" for name, count in kinds.items()) + ".",
        f"Seeds {options.seed} to {options.seed + done - 1}; up to 10 nodes, every {LARGE_EVERY}th up to 13.",
    ]
    return finish(
        "fuzz", figures, ("claim", "graphs", "worker seconds"), rows, threads=options.workers, notes=notes, json_path=options.json
    )


def _run(seeds: range, workers: int, deadline: float) -> Iterator[Chunk]:
    """Chunks as they finish, under a progress bar, until the seeds, the time, or a counterexample ends them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    compile_kernels()
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with bar, multiprocessing.Pool(workers) as pool:
        task = bar.add_task("graphs", total=len(seeds))
        for chunk in pool.imap_unordered(check_seeds, chunks):
            yield chunk
            bar.advance(task, chunk.examples)
            if chunk.counterexample or time.perf_counter() >= deadline:
                return


def compile_kernels() -> None:
    """Fill the cache of compiled kernels once, so that no two workers compile at the same time."""
    from neaptide.passes import exact, offsets

    exact.compile_kernels()
    offsets.compile_kernels()


def check_seeds(seeds: range) -> Chunk:
    """Hold the graphs of these seeds to every claim."""
    seconds = dict.fromkeys((claim.__name__ for claim in PROPERTIES), 0.0)
    kinds = dict.fromkeys(kinds_of(None), 0)
    for done, seed in enumerate(seeds):
        choose = random.Random(seed).randrange
        graph = generate.random_graph(choose, max_nodes=13 if seed % LARGE_EVERY == 0 else 10)
        for name, present in kinds_of(graph).items():
            kinds[name] += present
        for claim in PROPERTIES:
            started = time.perf_counter()
            try:
                claim(graph, choose)
            except Exception as error:
                wrong = Counterexample(seed, claim.__name__, f"{type(error).__name__}: {error}", graph.to_json(indent=1))
                return Chunk(done + 1, seconds, kinds, wrong)
            seconds[claim.__name__] += time.perf_counter() - started
    return Chunk(len(seeds), seconds, kinds)


def kinds_of(graph: Graph | None) -> dict[str, bool]:
    """Which of the kinds that make liveness hard occur in `graph`; all False without one."""
    nodes = graph.nodes if graph else ()
    used = {t for node in nodes for t in node.inputs}
    return {
        "views": graph is not None and any(map(graph.is_view, nodes)),
        "in-place ops": any(node.writes for node in nodes),
        "several outputs": any(len(node.outputs) > 1 for node in nodes),
        "pinned outputs": graph is not None and bool(graph.outputs),
        "workspace": any(node.workspace for node in nodes),
        "unused inputs": graph is not None and not used.issuperset(graph.inputs),
    }


def report(wrong: Counterexample) -> int:
    """Print the graph, the claim, and how to make both again; returns the exit code."""
    print(wrong.graph)
    print(f"claim {wrong.claim} does not hold for the graph above: {wrong.message}")
    print(f"make it again: python -m benchmarks.fuzz --seed {wrong.seed} --examples 1")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
