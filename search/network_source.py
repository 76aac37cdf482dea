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
from torch import device, inf, nan, nn  # noqa: F401  (names that the forward pass may use)


def layers() -> dict[str, nn.Module]:
    """Every layer, by its place in the network."""
    return {{
{layers}
    }}


class Network(nn.Module):
    """One input of shape {shape}."""

    def __init__(self):
        super().__init__()
        for path, layer in layers().items():
            *parents, name = path.split(".")
            place = self
            for parent in parents:
                if parent not in place._modules:
                    place.add_module(parent, nn.Module())
                place = place._modules[parent]
            place.add_module(name, layer)
{tensors}
{forward}

def make_network() -> Network:
    """The network in evaluation mode{made}."""
{make}
    return network.eval()


if __name__ == "__main__":
    print(make_network()(torch.zeros({shape})).shape)
'''
NAMES = {
    "torch",
    "device",
    "inf",
    "nan",
    "NoneType",
    "fx_pytree",
    "pytree",
}  # what fx's code may refer to; the last three it never does here


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
    for node in graph.nodes:
        node.type = None
    code = graph.python_code("self")
    if unknown := set(code.globals) - NAMES:
        raise TraceError(f"the forward pass of {type(module).__name__} calls {', '.join(sorted(unknown))}, which is not of torch")
    forward = "\n".join(f"    {line}" if line.strip() else "" for line in _plain(code.src).splitlines()).rstrip() + "\n"
    make = ["    network = Network()"]
    if weights:
        make.insert(0, "    from pathlib import Path\n\n    from safetensors.torch import load_file\n")
        make.append(f'    network.load_state_dict(load_file(Path(__file__).with_name("{weights}")))')
    return _FILE.format(
        title=title,
        weights=f" Its weights are in {weights}, which needs safetensors." if weights else "",
        shape=tuple(shape),
        layers="\n".join(f'        "{path}": {_call(layer, path)},' for path, layer in _layers(module)),
        tensors="".join(f"        {line}\n" for line in _tensors(module)),
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


def _layers(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Layers of torch.nn, which the forward pass calls by their place."""
    for path, child in module.named_modules():
        if type(child).__module__.startswith("torch.nn.modules") and not isinstance(child, _containers()):
            yield path, child


def _containers() -> tuple[type, ...]:
    from torch import nn

    return nn.Sequential, nn.ModuleList, nn.ModuleDict


def _tensors(module: torch.nn.Module) -> Iterator[str]:
    """Lines that make parameters and buffers that belong to no layer of torch.nn."""
    for path, child in module.named_modules():
        if type(child).__module__.startswith("torch.nn.modules"):
            continue
        place = f'self.get_submodule("{path}")' if path else "self"
        for name, parameter in child.named_parameters(recurse=False):
            yield f'{place}.register_parameter("{name}", nn.Parameter({_zeros(parameter)}))'
        for name, buffer in child.named_buffers(recurse=False):
            yield f'{place}.register_buffer("{name}", {_zeros(buffer)})'


def _zeros(tensor: torch.Tensor) -> str:
    return f"torch.zeros({tuple(tensor.shape)}, dtype={tensor.dtype})"


def _call(layer: Any, path: str) -> str:
    """The call that makes a layer like this one: every argument of its class that is not as by default."""
    kind = type(layer)
    if kind.__module__ == "torch.nn.modules.lazy" or "Lazy" in kind.__name__:
        raise TraceError(f"layer {path!r} is a {kind.__name__}, whose shape is not known before it has run")
    positional, named = [], []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype", "args", "kwargs") or not (name == "bias" or hasattr(layer, name)):
            continue
        value = layer.bias is not None if name == "bias" else getattr(layer, name)
        if isinstance(value, tuple) and len(set(value)) == 1 and name in ("kernel_size", "stride", "padding", "dilation"):
            value = value[0]
        if parameter.default is inspect.Parameter.empty:
            positional.append(repr(value))
        elif value != parameter.default:
            named.append(f"{name}={value!r}")
    return f"nn.{kind.__name__}({', '.join([*positional, *named])})"
