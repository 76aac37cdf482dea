"""Arguments of aten operators as JSON-like values, and back.

`Node.attrs` of an aten node is `{"args": [...], "kwargs": {...}}`: the exact call that was dispatched. Tensors are `Ref(i)`,
standing for `node.inputs[i]`; dtypes, devices, layouts, memory formats, complex and non-finite numbers are `Atom`s; the rest
is None, bool, int, float, str and lists. The tensors among `torch.utils._pytree.tree_leaves` of what the call returns are
`node.outputs`, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .allowed_ops import overload_of, refusal
from .errors import TraceError
from .graph import Atom, Ref

PLAIN = (bool, int, str, type(None))


def dtype_name(dtype: torch.dtype) -> str:
    """`"float32"` for `torch.float32`."""
    return DTYPE_NAMES.get(dtype) or str(dtype).removeprefix("torch.")


DTYPE_NAMES = {value: str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}


def encode(value: Any, ref: Callable[[torch.Tensor], Ref], concrete: Callable[[Any], Any] = int) -> Any:
    """`value`, an argument of a dispatched op, as attributes. `ref` names each tensor; `concrete` sizes a symbolic integer."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else Atom("float", repr(value))
    if isinstance(value, torch.Tensor):
        return ref(value)
    if isinstance(value, list | tuple):
        return [encode(item, ref, concrete) for item in value]
    if isinstance(value, torch.dtype):
        return Atom("dtype", dtype_name(value))
    if isinstance(value, torch.device):
        return Atom("device", str(value))
    if isinstance(value, torch.layout):
        return Atom("layout", str(value).removeprefix("torch."))
    if isinstance(value, torch.memory_format):
        return Atom("memory_format", str(value).removeprefix("torch."))
    if isinstance(value, torch.SymInt):
        return int(concrete(value))
    if isinstance(value, torch.SymFloat | torch.SymBool):
        return Atom("symbol", str(value)) if value.node.hint is None else encode(value.node.hint, ref, concrete)
    if isinstance(value, complex):
        return Atom("complex", repr(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return encode(float(value), ref, concrete)
    if isinstance(value, Mapping):
        return {str(k): encode(v, ref, concrete) for k, v in value.items()}
    if isinstance(value, torch.Generator):
        return Atom("generator", str(value.device))
    return Atom("object", type(value).__qualname__)


def decode(value: Any, inputs: Sequence[Any]) -> Any:
    """The argument that `encode` wrote, with `inputs[i]` in place of `Ref(i)`.

    Raises `TraceError` for an argument that has no text form (an opaque object); a generator comes back as the default one (None).
    """
    if isinstance(value, Ref):
        return inputs[value.index]
    if isinstance(value, Atom):
        return _atom(value)
    if isinstance(value, list | tuple):
        return [decode(item, inputs) for item in value]
    if isinstance(value, Mapping):
        return {k: decode(v, inputs) for k, v in value.items()}
    return value


def _atom(atom: Atom) -> Any:
    if atom.kind == "generator":
        return None
    wanted = NAMED_VALUES.get(atom.kind)
    found = None if wanted is None else vars(torch).get(atom.value)
    if wanted is not None and isinstance(found, wanted):
        return found
    make = PARSED_VALUES.get(atom.kind)
    try:
        if make is not None:
            return make(atom.value)
    except (ValueError, RuntimeError):
        pass
    raise TraceError(f"an argument of kind {atom.kind!r} ({atom.value}) cannot be turned back into a value: the op cannot be run again")


NAMED_VALUES: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
PARSED_VALUES: dict[str, Callable[[str], Any]] = {"device": torch.device, "float": float, "complex": complex}


def torch_dtype(name: str) -> torch.dtype:
    """`torch.float32` for `"float32"`. Raises `TraceError` for a name that is no dtype of torch."""
    found = vars(torch).get(name)
    if not isinstance(found, torch.dtype):
        raise TraceError(f"{name!r} is no dtype of torch {torch.__version__}: such a tensor can be analysed, not run")
    return found


def call_args(attrs: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of an aten node, ready for the operator, over runtime `inputs`."""
    return decode(attrs.get("args", []), inputs), decode(attrs.get("kwargs", {}), inputs)


def operator(name: str) -> Any:
    """The `torch.ops` overload called `name`, e.g. `"aten.relu.default"`. Raises `TraceError` when this process has none."""
    found = overload_of(name)
    if found is None:
        raise TraceError(f"no operator {name!r} in this process: import the package that registers it")
    return found


def runnable(name: str) -> Any:
    """`operator(name)`, to be run on real tensors. Raises `TraceError` for one that may do more than compute (`allowed_ops`)."""
    found = operator(name)
    why = refusal(found)
    if why is not None:
        raise TraceError(f"operator {name!r} {why}, so it is not run on a file's word: trace the model it comes from in this process")
    return found
