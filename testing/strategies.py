"""Hypothesis strategies: well-formed graphs, their topological orders, lifetimes, and small conv nets."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ..compiler.errors import MissingExtraError
from ..compiler.graph import Graph
from . import generate

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("hypothesis", "testing", "neaptide.testing") from error

if TYPE_CHECKING:
    from .conv_nets import RandomConvNet


def graphs(
    *,
    min_nodes: int = 0,
    max_nodes: int = 10,
    views: bool = True,
    inplace: bool = True,
    multi_output: bool = True,
    workspace: bool = True,
    weights: bool = True,
) -> st.SearchStrategy[Graph]:
    """Well-formed Graphs of `min_nodes` to `max_nodes` nodes; shrinks to few nodes, few operands and small sizes.

    The flags switch kinds of nodes off, as `generate.random_graph` tells. Sizes are bytes from 0 to 256.
    """

    @st.composite
    def strategy(draw: st.DrawFn) -> Graph:
        return generate.random_graph(
            _choices(draw),
            min_nodes=min_nodes,
            max_nodes=max_nodes,
            views=views,
            inplace=inplace,
            multi_output=multi_output,
            workspace=workspace,
            weights=weights,
        )

    return strategy()


@st.composite
def topological_orders(draw: st.DrawFn, graph: Graph) -> tuple[int, ...]:
    """Topological orders of `graph`, as tuples of node ids; shrinks to the traced order."""
    return generate.random_order(_choices(draw), graph)


@st.composite
def lifetimes(
    draw: st.DrawFn, *, min_blocks: int = 0, max_blocks: int = 7, max_time: int = 8, max_size: int = 12, full: bool = False
) -> list[tuple[int, int, int]]:
    """Lists of blocks `(lower, upper, size)`, alive over the half-open [lower, upper); empty sizes and exact repeats occur.

    With `full`, one load fills every moment, which is the hard kind: `generate.full_lifetimes` of `max_blocks` and `max_time`.
    """
    if full:
        return generate.full_lifetimes(_choices(draw), max_blocks=max_blocks, max_time=max_time)
    return generate.random_lifetimes(_choices(draw), min_blocks=min_blocks, max_blocks=max_blocks, max_time=max_time, max_size=max_size)


@st.composite
def conv_nets(draw: st.DrawFn, *, max_steps: int = 8, inplace: bool = True, views: bool = True) -> tuple[RandomConvNet, tuple[Any, ...]]:
    """`(module, args)`: a small random conv net in eval mode and example inputs of shape (batch, channels, height, width).

    Nets have residual adds, concats, grouped and strided convs, norms, pools, `views` (chunks, permutes) and `inplace` ReLUs,
    and return one tensor or several. Weights and inputs are seeded, so an example is reproduced by its `repr`. Needs torch.
    """
    from .conv_nets import example_args, random_conv_net

    net = random_conv_net(_choices(draw), max_steps=max_steps, inplace=inplace, views=views)
    return net, example_args(net)


@cache
def _below(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, n - 1)


def _choices(draw: st.DrawFn) -> generate.Choose:
    return lambda n: draw(_below(n))
