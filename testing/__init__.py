"""Property tests for memory passes: random graphs, orders, lifetimes and conv nets, and the brute-force answers.

Strategies (need `pip install 'neaptide[testing]'`) draw well-formed inputs that shrink: `graphs`, `topological_orders`,
`lifetimes`, `conv_nets`. Oracles are exhaustive and slow, and share no code with the passes they judge:
`brute_force_peak`, `brute_force_optimum`, `brute_force_height`. A liveness pass of your own is tested in four lines:

    @given(graphs(), st.data())
    def test_peak(graph, data):
        order = data.draw(topological_orders(graph))
        assert my_peak(graph, order) == brute_force_peak(graph, order)

`generate` holds the construction code itself, driven by any source of choices; with `random.Random(seed).randrange` it makes
graphs by the hundred thousand, without Hypothesis. `check_space` holds a search space of your own to the contract of all spaces.
`StepClock` makes a time limit mean the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clock import StepClock
from .oracles import brute_force_height, brute_force_optimum, brute_force_peak

if TYPE_CHECKING:
    from .spaces import check_space
    from .strategies import conv_nets, graphs, lifetimes, topological_orders

__all__ = [
    "StepClock",
    "brute_force_height",
    "brute_force_optimum",
    "brute_force_peak",
    "check_space",
    "conv_nets",
    "graphs",
    "lifetimes",
    "topological_orders",
]


def __getattr__(name: str) -> Any:
    """Strategies on first use, so that the oracles work without Hypothesis."""
    if name in ("conv_nets", "graphs", "lifetimes", "topological_orders"):
        from . import strategies

        return getattr(strategies, name)
    if name == "check_space":
        from .spaces import check_space

        return check_space
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
