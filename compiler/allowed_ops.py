"""What may run when a file asks for it: operators of torch that take tensors and numbers, give tensors and numbers, and do no more.

A model file or a Graph read from JSON names operators, and some of torch's operators touch the world: `aten.from_file` makes a
file, `aten.save` writes one, others join processes, set up devices or follow pointers. Those that may run are listed here, by what
their schemas say: of a computing namespace, known to the dispatcher, over tensors, numbers, dtypes, devices and the like. A text
argument is allowed where it was reviewed and only chooses between ways to compute (`TEXTS`). Operators of other namespaces run only
if this process has seen the user's own model call them.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch

NAMESPACES = frozenset(("aten", "prims", "quantized_decomposed", "torchvision"))
VALUES = frozenset(("Tensor", "int", "float", "bool", "number", "Device", "Generator"))
# Text arguments that choose a way to compute, by name, and the operators that were reviewed.
TEXTS: dict[str, str] = {
    "reduce": "_sparse_mm _sparse_mm_reduce_impl _sparse_mm_reduce_impl_backward _segment_reduce_backward index_reduce index_reduce_ "
    "scatter scatter_ scatter_reduce scatter_reduce_ segment_reduce",
    "activation": "_sparse_semi_structured_linear _mixed_dtypes_linear",
    "algorithm": "_sparse_semi_structured_tile",
    "padding_side": "pad_sequence",
    "norm": "fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft "
    "fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn",
    "assert_msg": "_assert_async _assert_scalar _functional_assert_async _functional_assert_scalar",
    "approximate": "gelu gelu_ gelu_backward",
    "ord": "linalg_matrix_norm linalg_norm",
    "p": "linalg_cond",
    "rounding_mode": "div div_ divide divide_",
    "interpolation": "nanquantile quantile",
    "driver": "_linalg_svd linalg_lstsq linalg_svd linalg_svdvals",
    "mode": "linalg_qr pad",
    "pad_mode": "stft",
    "UPLO": "_linalg_eigh linalg_eigh linalg_eigvalsh",
    "side": "searchsorted",
    "padding": "_convolution_mode conv1d conv2d conv3d",
    "equation": "einsum",
    "indexing": "meshgrid",
    "api_name": "_linalg_check_errors",
}
REVIEWED = frozenset((op, argument) for argument, names in TEXTS.items() for op in names.split())
# Plain schemas that hide more: device set-up, autograd, tests, and tensors whose parts are trusted, not checked.
REFUSED = re.compile(
    r"_cuda|_cudnn_init|_?pin_memory|is_pinned|_?backward$|set_data$|_test_|_debug|_propagate_xla|_nested_|_sparse_\w+_tensor_unsafe"
    r"|_fw_primal|_make_dual|retain_grad|requires_grad_"
)
PYTHON_OPERATORS = frozenset(
    ("add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "index", "invert", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "not_",
     "or_", "pos", "pow", "rshift", "sub", "truediv", "xor")
)  # fmt: skip
MATH = frozenset(("ceil", "floor", "trunc", "sqrt", "pow", "exp", "log", "log2", "cos", "sin", "tan"))
# Operators that run graphs which the same file holds, and the marks that torch.export leaves around a vmap.
HIGHER_ORDER = frozenset(
    ("associative_scan", "auto_functionalized", "auto_functionalized_v2", "cond", "flex_attention", "hints_wrapper", "invoke_subgraph",
     "map_impl", "out_dtype", "scan", "strict_mode", "tag_activation_checkpoint", "while_loop", "while_loop_stack_output", "wrap",
     "wrap_activation_checkpoint", "wrap_with_autocast", "wrap_with_set_grad_enabled")
)  # fmt: skip
VMAP = frozenset(("_add_batch_dim", "_remove_batch_dim", "_vmap_decrement_nesting", "_vmap_increment_nesting", "lazy_load_decompositions"))

_called_here: set[str] = set()


def note_called(op: Any) -> None:
    """Remember that the user's own model, running in this process, calls `op`: it may then run again here."""
    if op.namespace not in NAMESPACES:
        _called_here.add(str(op))


def refusal(op: Any) -> str | None:
    """Why the operator overload `op` may not run on a file's word, as the end of a sentence; None if it may."""
    if op.namespace not in NAMESPACES:
        return None if str(op) in _called_here else f"is of the namespace {op.namespace!r}, which is not one of torch's that only compute"
    return _refusal(op)


@functools.cache
def _refusal(op: Any) -> str | None:
    schema = op._schema
    name = schema.name.split("::")[1]
    if not torch._C._dispatch_has_kernel(f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name):
        return "is none that torch dispatches"
    if op.namespace == "aten" and REFUSED.match(name):
        return "does more than compute"
    for argument in schema.arguments:
        kind = _kind(argument.type)
        if kind == "str":
            if op.namespace == "aten" and (name, argument.name) not in REVIEWED:
                return f"takes the text {argument.name!r}, which may name anything"
        elif kind not in VALUES:
            return f"takes a {kind}"
    return next((f"gives a {_kind(r.type)}" for r in schema.returns if _kind(r.type) not in VALUES), None)


def _kind(declared: Any) -> str:
    """The type of an argument or a result without its lists and options."""
    return re.sub(r"Optional\[|List\[|\]", "", str(declared))


def target_refusal(target: str) -> str | None:
    """Why a serialized call target may not be called, as the end of a sentence; None if it may."""
    parts = target.split(".")
    match parts:
        case ["_operator", name] if name in PYTHON_OPERATORS:
            return None
        case ["math", name] if name in MATH:
            return None
        case ["torch", name] if re.fullmatch(r"_?sym_\w+", name) and callable(vars(torch).get(name)):
            return None
        case ["torch", "_functorch", "predispatch", name] if name in VMAP:
            return None
        case ["torch", "ops", "higher_order", name] if name in HIGHER_ORDER:
            return None
        case ["torch", "ops", namespace, name, overload]:
            found = overload_of(f"{namespace}.{name}.{overload}")
            return "is no operator that this process knows" if found is None else refusal(found)
        case _:
            return "is no operator"


def overload_of(name: str) -> Any:
    """The operator overload called `name`, e.g. `"aten.relu.default"`; None where this process has none of that name.

    Nothing else that `torch.ops` holds can be reached by name, such as what loads libraries.
    """
    parts = name.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"\w+", part) for part in parts):
        return None
    found: Any = torch.ops
    for part, kind in zip(parts, (torch._ops._OpNamespace, torch._ops.OpOverloadPacket, torch._ops.OpOverload), strict=True):
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):
            return None
        if not isinstance(found, kind):
            return None
    return found
