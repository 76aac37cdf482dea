"""An fx program of aten ops, brought to ops that TVM's converters get right: the pass that applies `plain_ops` and `gathered`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from .gathered import GATHERED
from .plain_ops import SAME

SMALL = 1 << 16  # elements of a constant that is looked into
TAKEN_APART = frozenset(("grid_sampler_2d.default",))  # in torch's words rather than by TVM's converter


def make_plain(graph: fx.Graph, values: dict[str, torch.Tensor], known: Mapping[str, Any]) -> Iterator[str]:
    """Replace what `SAME` and `GATHERED` have other words for, and what is not in `known` and torch can take apart.

    `values`: constants by the name of their placeholder; those made here are added. Yields the names of ops that stay, and are not known.
    """
    pending = [n for n in graph.nodes if n.op == "call_function"]
    while pending:
        node = pending.pop(0)
        target: Any = node.target
        if target is operator.getitem or (target is torch.ops.aten.native_batch_norm.default and not node.args[5]):
            continue  # batch norm of inference is folded, or given TVM's own form, later
        function = _other_words(node, values, known)
        if function is not None:
            pending[:0] = _inline(graph, node, function, values)
        elif target.__name__ not in known:
            yield str(target)


def _other_words(node: fx.Node, values: Mapping[str, torch.Tensor], known: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A function of the tensors that `node` is called with, in order; None where the node stays."""
    target: Any = node.target
    leaves, spec = tree_flatten((node.args, node.kwargs))
    constants = {i: fixed_value(leaf, values) for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)}

    def called(function: Callable[..., Any]) -> Callable[..., Any]:
        def of_tensors(*tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            args, kwargs = tree_unflatten([next(given) if isinstance(leaf, fx.Node) else leaf for leaf in leaves], spec)
            return function(*args, **kwargs)

        return of_tensors

    gathered = GATHERED.get(target.__name__)
    if gathered is not None:
        shapes = [leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        like, named = tree_unflatten(shapes, spec)
        fixed = tree_unflatten([constants.get(i) for i in range(len(leaves))], spec)
        made = gathered(like, named, fixed)
        if made is not None:
            return called(made)
    if target.__name__ in SAME:
        function = SAME[target.__name__]
        likes = [
            torch.empty(leaf.meta["val"].shape, dtype=leaf.meta["val"].dtype, device="meta") for leaf in leaves if isinstance(leaf, fx.Node)
        ]
        if called(function)(*likes) is not NotImplemented:
            return called(function)
    if (target.__name__ not in known or target.__name__ in TAKEN_APART) and target in decomposition_table:
        return called(decomposition_table[target])
    return None


def fixed_value(node: fx.Node, values: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What a node holds that depends on constants alone and is small; None for any other."""
    if node.op == "placeholder":
        return values.get(node.name)
    target: Any = node.target
    leaves, spec = tree_flatten((node.args, node.kwargs))
    like = node.meta.get("val")
    if not isinstance(like, torch.Tensor) or like.numel() > SMALL or not isinstance(target, torch._ops.OpOverload):
        return None
    given = [fixed_value(leaf, values) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    if torch.Tag.nondeterministic_seeded in target.tags or any(
        g is None for g, leaf in zip(given, leaves, strict=True) if leaf is not None
    ):
        return None
    args, kwargs = tree_unflatten(given, spec)
    return target(*args, **kwargs)


def _inline(graph: fx.Graph, node: fx.Node, function: Callable[..., Any], values: dict[str, torch.Tensor]) -> list[fx.Node]:
    """Put the ops of `function` in place of `node`; returns them."""
    sources = [leaf for leaf in tree_flatten((node.args, node.kwargs))[0] if isinstance(leaf, fx.Node)]
    examples = [torch.empty(n.meta["val"].shape, dtype=n.meta["val"].dtype) for n in sources]
    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    given, at, made = iter(sources), {}, []
    result: Any = None
    for inner in traced.graph.nodes:
        if inner.op == "placeholder":
            at[inner] = next(given)
        elif inner.op == "get_attr":
            at[inner] = constant(graph, values, getattr(traced, inner.target))
        elif inner.op == "output":
            result = inner.args[0]
        elif isinstance(inner.target, type):  # the type of several results, such as torch's own named tuples
            at[inner] = tuple(at[n] for n in inner.args)
        elif inner.target is operator.getitem and isinstance(at[inner.args[0]], tuple):
            at[inner] = at[inner.args[0]][inner.args[1]]
        else:
            with graph.inserting_before(node):
                at[inner] = graph.node_copy(inner, lambda n: at[n])
            val = inner.meta["val"] if "val" in inner.meta else inner.target(*_likes(at[inner].args), **_likes(at[inner].kwargs))
            at[inner].meta = {"val": _meta(val)}
            made.append(at[inner])
    results = at[result] if isinstance(result, fx.Node) else tuple(at[n] for n in result)
    if isinstance(results, tuple):
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(results)
    graph.erase_node(node)
    return made


def constant(graph: fx.Graph, values: dict[str, torch.Tensor], value: torch.Tensor) -> fx.Node:
    """A placeholder for `value`, before everything else."""
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        node = graph.placeholder(f"weight_{len(values)}_made")
    node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device="meta")
    values[node.name] = value.detach().clone()
    return node


def _likes(value: Any) -> Any:
    return fx.node.map_arg(value, lambda n: n.meta["val"])


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return tuple(_meta(v) for v in value) if isinstance(value, list | tuple) else value
