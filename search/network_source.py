"""A network as one Python file that needs torch and nothing else, with the parameter names of the module it was written from.

The forward pass is traced with torch.fx; each layer is written as the call that makes it, from the arguments its class takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..compiler.errors import TraceError

if TYPE_CHECKING:
    import torch

_FILE = '''"""{title}

Written by Neaptide; needs torch alone.{weights}
"""

import torch
from torch import device, inf, nan, nn  # names that a traced forward pass may use


class Network(nn.Module):
    """One input of shape {shape}."""

    def __init__(self):
        super().__init__()
{init}

{forward}

def make_network() -> Network:
    """The network in evaluation mode{made}."""
{make}
    return network.eval()


if __name__ == "__main__":
    print(make_network()(torch.zeros({shape})).shape)
'''


def network_source(module: torch.nn.Module, shape: tuple[int, ...], *, title: str, weights: str = "") -> str:
    """Python source whose `make_network()` gives a module with `module`'s layers, names and results.

    `weights`: a safetensors file beside the source that it then loads. Raises `TraceError` when the forward pass depends on data, or
    when a layer is not one of torch.nn's.
    """
    from torch import fx
    from torch.fx.proxy import TraceError as Untraceable

    try:
        graph = fx.Tracer().trace(module)
    except (Untraceable, TypeError) as error:
        raise TraceError(f"the forward pass of {type(module).__name__} cannot be written as Python: {error}") from error
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    init = "\n".join(f"        {line}" for line in _init(module, used))
    code = graph.python_code("self").src
    forward = "\n".join(f"    {line}" if line.strip() else "" for line in _plain(code).splitlines()).rstrip() + "\n"
    make = ["    network = Network()"]
    if weights:
        make.insert(0, "    from pathlib import Path\n\n    from safetensors.torch import load_file\n")
        make.append(f'    network.load_state_dict(load_file(Path(__file__).with_name("{weights}")))')
    return _FILE.format(
        title=title,
        weights=f" Its weights are in {weights}, which needs safetensors." if weights else "",
        shape=tuple(shape),
        init=init,
        forward=forward,
        make="\n".join(make),
        made=", with its trained weights" if weights else "",
    )


def _plain(code: str) -> str:
    """fx's code without the annotations and clean-ups that only fx needs."""
    lines = []
    for line in code.splitlines():
        if not line.strip() or line.startswith(("torch.fx._symbolic_trace.wrap", "import", "from")):
            continue
        lines.append(line.split(";  ")[0].rstrip())
    return "\n".join(lines)


def _init(module: torch.nn.Module, used: set[str]) -> Iterator[str]:
    """Lines that make every layer at its place, parents first."""
    from torch import nn

    for path, child in module.named_modules():
        if not path:
            continue
        place = _place(path)
        parent, _, name = path.rpartition(".")
        if path in used or (type(child).__module__.startswith("torch.nn.modules") and not list(child.children())):
            value = _call(child, path)
        elif isinstance(child, nn.Sequential | nn.ModuleList):
            value = f"nn.{type(child).__name__}()"
        else:
            value = "nn.Module()"
        holder = _place(parent)
        yield f"{holder}.add_module({name!r}, {value})" if not name.isidentifier() else f"{place} = {value}"
    for owner, name, tensor, learned in _loose(module):
        zeros = f"torch.zeros({tuple(tensor.shape)}, dtype={tensor.dtype})"
        yield (
            f"{_place(owner)}.register_parameter({name!r}, nn.Parameter({zeros}))"
            if learned
            else f"{_place(owner)}.register_buffer({name!r}, {zeros})"
        )


def _loose(module: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor, bool]]:
    """Parameters and buffers that belong to no layer of torch.nn: (owner, name, tensor, whether learned)."""
    for path, child in module.named_modules():
        if type(child).__module__.startswith("torch.nn.modules"):
            continue
        for name, parameter in child.named_parameters(recurse=False):
            yield path, name, parameter, True
        for name, buffer in child.named_buffers(recurse=False):
            yield path, name, buffer, False


def _place(path: str) -> str:
    """The expression for the module at `path`."""
    out = "self"
    for name in path.split(".") if path else ():
        out = f"{out}.{name}" if name.isidentifier() else f"getattr({out}, {name!r})"
    return out


def _call(layer: Any, path: str) -> str:
    """The call that makes a layer like this one: every argument of its class that is not as by default."""
    kind = type(layer)
    if not kind.__module__.startswith("torch.nn.modules"):
        raise TraceError(f"layer {path!r} is a {kind.__name__}, which is not one of torch.nn's; it cannot be written as Python")
    positional, named = [], []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype", "args", "kwargs") or not (name == "bias" or hasattr(layer, name)):
            continue
        value = layer.bias is not None if name == "bias" else getattr(layer, name)
        if parameter.default is inspect.Parameter.empty:
            positional.append(repr(value))
        elif value != parameter.default:
            named.append(f"{name}={value!r}")
    return f"nn.{kind.__name__}({', '.join([*positional, *named])})"
