"""What the schema of an operator says, as far as a recording needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .allowed_ops import note_called
from .bounds import BOUNDS
from .fake_kernels import FAKE_KERNELS

DROPPED_NAMESPACES = frozenset(("prim", "prims", "profiler"))
LIFTS = frozenset(("aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"))
SETTERS = frozenset(f"aten.set_.{overload}" for overload in ("source_Storage", "source_Storage_storage_offset", "source_Tensor", ""))
LOOKERS = frozenset(("aten._fused_sdp_choice.default", "aten.is_same_size.default", "aten._has_compatible_shallow_copy_type.default"))
PACKED = "aten._pack_padded_sequence.default"
MASKED = frozenset(
    f"aten.{op}.default"
    for op in (
        "index_put",
        "index_put_",
        "_index_put_impl_",
        "_unsafe_index_put",
        "masked_scatter",
        "masked_scatter_",
        "masked_scatter_backward",
    )
)
# Ops that write arguments which their schema does not mark: argument positions, and the position of the flag that says so.
UNMARKED_WRITES = {
    "aten.native_batch_norm.default": ((3, 4), 5),
    "aten.cudnn_batch_norm.default": ((3, 4), 5),
    "aten.miopen_batch_norm.default": ((3, 4), 5),
}


@dataclass(frozen=True, slots=True)
class OpInfo:
    """What the schema of one operator says: `writes` are (position, name) of mutated arguments; `dropout` of a dropout probability.

    `dependent`: the size of a result, or a number it returns, depends on data. `plain`: it only makes new tensors.
    `in_place`: it writes its first argument, returns it, and does nothing else. `shapes_only`: it reads and writes no bytes.
    `mask`: position of the argument that says which of its results are wanted; kernels leave the others undefined.
    `masked`: what it takes for itself depends on how many elements a mask chooses.
    """

    name: str
    dropped: bool
    writes: tuple[tuple[int, str], ...]
    random: bool
    dropout: tuple[int, str] | None
    lift: bool
    dependent: bool
    plain: bool
    in_place: bool
    shapes_only: bool
    mask: int | None
    masked: bool


def op_info(func: Any) -> OpInfo:
    """Facts of one operator overload."""
    note_called(func)
    name = str(func)
    arguments = func._schema.arguments
    writes = tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)
    dropout = next(((i, a.name) for i, a in enumerate(arguments) if a.name in ("dropout_p", "dropout")), None)
    random = torch.Tag.nondeterministic_seeded in func.tags
    dependent = name in BOUNDS or name == PACKED or torch.Tag.data_dependent_output in func.tags
    dependent |= torch.Tag.dynamic_output_shape in func.tags and name not in FAKE_KERNELS
    lift = name in LIFTS
    special = random or dependent or func.is_view or lift or name in FAKE_KERNELS or func.namespace != "aten"
    plain = not (special or writes)
    in_place = not special and [i for i, _ in writes] == [0] and len(func._schema.returns) == 1
    shapes_only = (func.is_view and not lift) or torch.Tag.inplace_view in func.tags or name in SETTERS or name in LOOKERS
    dropped = func.namespace in DROPPED_NAMESPACES
    mask = next((i for i, a in enumerate(arguments) if a.name in ("output_mask", "grad_input_mask")), None)
    return OpInfo(
        name, dropped, writes, random, dropout, lift, dependent, plain, in_place and not shapes_only, shapes_only, mask, name in MASKED
    )


_known: dict[Any, OpInfo] = {}


def known_info(func: Any) -> OpInfo:
    """`op_info`, remembered."""
    info = _known.get(func)
    if info is None:
        info = _known[func] = op_info(func)
    return info
