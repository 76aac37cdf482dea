"""SOURCE on the command line: what a person types to name a model, and how it becomes a model or a Graph.

A SOURCE is a built-in reference model (`resnet50`), a factory (`package.module:factory`, `file.py:factory`), a zoo entry
(`timm:NAME`, `torchvision:NAME`) or a file (`.onnx`, `.pt2`, `.json`). Factories return a module, `(module, args)` or
`(module, args, kwargs)` and run on the meta device first, where weights take no memory. Pickles are never opened.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .compiler.errors import MissingExtraError, NeaptideError, SourceError, TraceError
from .compiler.graph import Graph

GRAPH_FILES = {".onnx": "ONNX", ".pt2": "torch.export", ".json": "graph"}
PICKLES = frozenset((".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".pt1", ".joblib"))
LARGE = 1 << 24
_INPUT = re.compile(r"(?:(?P<name>[\w.:/]*[A-Za-z_][\w.:/]*)=)?(?P<shape>scalar|\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


@dataclass(frozen=True)
class InputSpec:
    """One `--input`: `1x3x224x224`, `1x128:int64`, `mask=1x128:bool`, `step=scalar:int64`. `name` "" means the next position."""

    shape: tuple[int, ...]
    dtype: str = ""
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Raises `SourceError` that shows how inputs are written."""
        match = _INPUT.fullmatch(text.strip().replace("×", "x"))
        if match is None:
            raise SourceError(f"--input {text!r} is not a shape: write for example 1x3x224x224, 1x128:int64 or mask=1x128:bool")
        shape = () if match["shape"] == "scalar" else tuple(map(int, match["shape"].split("x")))
        return cls(shape, match["dtype"] or "", match["name"] or "")


@dataclass(frozen=True)
class Model:
    """A resolved SOURCE: a Graph, or a module with the arguments it is called with."""

    name: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def resolve(source: str, inputs: Sequence[InputSpec] = (), dtype: str = "", *, runnable: bool = False) -> Model:
    """What `source` names, with `inputs` in place of its own example arguments and floating tensors in `dtype` if given.

    `runnable`: build the model with its real weights, for a real run; otherwise it takes no memory where that is possible.
    Raises `SourceError` for what cannot be named, `FormatError` for files that are not what they say, `TraceError` with the
    user's line for factories that raise.
    """
    suffix = Path(source).suffix.lower()
    if suffix in GRAPH_FILES:
        return _graph_file(source, suffix, inputs, dtype)
    _refuse(source, suffix)
    zoo, colon, name = source.partition(":")
    if colon and zoo in _ZOOS:
        build, examples = _ZOOS[zoo](name)
    elif colon and not re.fullmatch(r"[A-Za-z]:[\\/].*", source):
        path, _, factory = source.rpartition(":")
        build, examples, name = _factory(path, factory), None, factory
    else:
        from .compiler.reference_models import REFERENCE_MODELS, reference_model

        if source not in REFERENCE_MODELS:
            raise SourceError(
                f"{source!r} is not a built-in model, and no file.{did_you_mean(source, REFERENCE_MODELS)} `neaptide models` lists them"
            )
        build, examples = reference_model(source)
        name = source
    module, args, kwargs = _parts(source, _built(build, source, runnable))
    if inputs:
        args = tuple(_example(i.shape, i.dtype or dtype or "float32") for i in inputs if not i.name)
        kwargs = {i.name: _example(i.shape, i.dtype or dtype or "float32") for i in inputs if i.name}
    elif not args and not kwargs and examples is not None:
        args = tuple(examples())
    elif not args and not kwargs and _needs_arguments(module):
        raise SourceError(
            f"{source!r} does not say what it is called with: add --input, for example --input 1x3x224x224, or return (module, args)"
        )
    if dtype:
        module = module.to(_torch_dtype(dtype))
        args, kwargs = (args, kwargs) if inputs else (_cast(args, dtype), _cast(kwargs, dtype))
    return Model(name, module, args, kwargs)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x' or 'y'?`, or nothing when nothing known is near."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


# ---- files -------------------------------------------------------------------------------------------------------------------


def _graph_file(source: str, suffix: str, inputs: Sequence[InputSpec], dtype: str) -> Model:
    _must_exist(source)
    if dtype or (inputs and suffix != ".onnx"):
        raise SourceError(
            f"{source!r} carries its own shapes and dtypes: leave out {'--input' if inputs else '--dtype'}, or export it anew"
        )
    name = Path(source).stem
    if suffix == ".onnx":
        return Model(name, Graph.from_onnx(source, name=name, shapes=_onnx_shapes(source, inputs)))
    if suffix == ".pt2":
        return Model(name, Graph.from_exported_program(source, name=name))
    return Model(name, Graph.load_json(source))


def _onnx_shapes(source: str, inputs: Sequence[InputSpec]) -> dict[str, Sequence[int] | int]:
    """Shapes of inputs by name, and sizes of named dimensions: `x=2x3` is the one, `batch=2` either."""
    shapes: dict[str, Sequence[int] | int] = {}
    for given in inputs:
        if not given.name or given.dtype:
            raise SourceError(f"{source!r} has inputs of its own: name the one whose shape is meant, --input NAME=2x3, without a dtype")
        shapes[given.name] = given.shape[0] if len(given.shape) == 1 else given.shape
    return shapes


def _refuse(source: str, suffix: str) -> None:
    """Raise for files that are no model or not a safe one."""
    if suffix in PICKLES:
        raise SourceError(
            f"{source!r} is a pickle, and opening one can run any code inside it. Give the architecture instead: `file.py:factory` "
            "(weights are not needed), an ONNX file, or a .pt2 from torch.export; keep weights in safetensors"
        )
    if suffix == ".safetensors":
        raise SourceError(f"{source!r} holds weights but no architecture: give a factory that builds the model, `file.py:factory`")
    if suffix == ".csv":
        raise SourceError(f"{source!r} looks like lifetimes: use `neaptide allocate {source}`")
    if suffix == ".py":
        _must_exist(source)
        raise SourceError(f"{source!r} needs the name of a factory: write {source}:{_first_function(source) or 'factory'}")
    if os.path.isdir(source):
        raise SourceError(f"{source!r} is a folder; give a file in it, or `file.py:factory`")
    if os.path.isfile(source):
        raise SourceError(f"{source!r} is not a kind of file that Neaptide reads: {', '.join(GRAPH_FILES)} or file.py:factory")
    if suffix and ":" not in suffix and os.sep in source:
        _must_exist(source)


def _must_exist(path: str) -> None:
    if os.path.isdir(path):
        raise SourceError(f"{path!r} is a folder, not a file")
    if not os.path.exists(path):
        folder = os.path.dirname(path) or "."
        siblings = os.listdir(folder) if os.path.isdir(folder) else []
        raise SourceError(f"there is no file {path!r}.{did_you_mean(os.path.basename(path), siblings)}")


def _first_function(path: str) -> str:
    """The name of the first public function or class of a Python file, without running it."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((item.name for item in tree.body if isinstance(item, kinds) and not item.name.startswith("_")), "")


# ---- factories ---------------------------------------------------------------------------------------------------------------


def _factory(path: str, attribute: str) -> Callable[[], Any]:
    """The callable `attribute` of a Python file or an importable module."""
    module = _load_file(path) if path.endswith(".py") else _import(path)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise SourceError(f"{path!r} has no {attribute!r}.{did_you_mean(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise SourceError(f"{attribute!r} of {path!r} is a {type(found).__name__}; a factory is a function that returns a torch.nn.Module")
    return found


def _load_file(path: str) -> Any:
    _must_exist(path)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    with _first_on_path(str(Path(path).resolve().parent)), _user_code(f"importing {path!r}"):
        spec.loader.exec_module(module)
    return module


def _import(name: str) -> Any:
    try:
        with _first_on_path(os.getcwd()), _user_code(f"importing {name!r}", ImportError):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise SourceError(f"importing {name!r} failed: {error}") from error
        raise SourceError(f"there is no module {error.name!r} on the path or in this folder; a file is named with its .py") from None
    except ImportError as error:
        raise SourceError(f"importing {name!r} failed: {error}") from error


@contextlib.contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """Inside: `folder` is searched first, as for a script. After: last, so that its names hide nobody's later imports."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


@contextlib.contextmanager
def _user_code(doing: str, *through: type[BaseException]) -> Iterator[None]:
    """An exception of the user's code becomes a `TraceError` that names their line; those of `through` pass."""
    from .compiler.trace import user_line

    try:
        yield
    except (NeaptideError, *through):
        raise
    except Exception as error:
        place = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else user_line(error)
        message = " ".join(str(error).split()) or "no message"
        raise TraceError(f"{doing} raised {type(error).__name__}{f' at {place}' if place else ''}: {message}") from error


# ---- zoos --------------------------------------------------------------------------------------------------------------------


def _timm(name: str) -> tuple[Callable[[], Any], Callable[..., Any] | None]:
    timm = _zoo("timm", "timm")
    if not timm.is_model(name):
        raise SourceError(f"timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    size = timm.get_pretrained_cfg(name)
    shape = tuple(size.input_size) if size is not None else (3, 224, 224)
    return lambda: timm.create_model(name, pretrained=False), lambda: (_example((1, *shape), "float32"),)


def _torchvision(name: str) -> tuple[Callable[[], Any], Callable[..., Any] | None]:
    models = _zoo("torchvision", "torchvision.models")
    if name not in models.list_models():
        raise SourceError(f"torchvision has no model {name!r}.{did_you_mean(name, models.list_models())}")
    builder = models.get_model_builder(name)
    untrained = {k: None for k in ("weights", "weights_backbone") if k in inspect.signature(builder).parameters}
    return lambda: builder(**untrained), _image_examples(builder, models.get_model_weights(name).DEFAULT)


def _image_examples(builder: Any, weights: Any) -> Callable[..., Any] | None:
    """One image of the size a torchvision classifier was trained for; None for models that take something else."""
    crop = getattr(weights.transforms(), "crop_size", None)
    size = crop[0] if isinstance(crop, list | tuple) else crop
    if size is None or builder.__module__.count(".") > 2:  # torchvision.models.video.resnet takes clips, torchvision.models.resnet images
        return None
    return lambda: (_example((1, 3, size, size), "float32"),)


def _zoo(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "zoo", f"a {package}: source") from None
        reason = " ".join(str(error).split())
        hint = ": install the torchvision that was built for this torch, from the same package index" if "torchvision::" in reason else ""
        raise SourceError(f"{package} is installed but does not import ({reason}){hint}") from error


_ZOOS = {"timm": _timm, "torchvision": _torchvision}


# ---- from a factory to a module and its arguments ----------------------------------------------------------------------------


def _built(build: Callable[[], Any], source: str, runnable: bool) -> Any:
    """`build()` without the memory and the drawing of its weights; in real memory when its constructor looks at values."""
    from .compiler.weightless import weightless

    with warnings.catch_warnings(), _user_code(f"building {source!r}"):
        warnings.simplefilter("ignore")
        if runnable:
            return build()
        try:
            with weightless(meta=True):
                return build()
        except NeaptideError:
            raise
        except Exception as on_meta:
            try:
                with weightless(meta=False):
                    return build()
            except Exception as in_memory:
                raise in_memory from on_meta


def _parts(source: str, made: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Module, positional and keyword arguments of what a factory returned."""
    import torch

    module, *call = made if isinstance(made, tuple) and made else (made,)
    if not isinstance(module, torch.nn.Module) or len(call) > 2:
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(module).__name__}"
        raise SourceError(f"{source!r} returned {what}; a factory returns a torch.nn.Module, (module, args) or (module, args, kwargs)")
    args = call[0] if call else ()
    kwargs = call[1] if len(call) > 1 else {}
    if isinstance(args, dict) and len(call) == 1:
        args, kwargs = (), args
    return module, (args,) if isinstance(args, torch.Tensor) else tuple(args), dict(kwargs)


def _needs_arguments(module: Any) -> bool:
    """Whether `forward` has a parameter without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.default is inspect.Parameter.empty and p.kind in kinds for p in parameters)


def _example(shape: Sequence[int], dtype: str) -> Any:
    """A tensor to call a model with: noise or zeros, the same each time; without memory when it would be large."""
    import torch

    kind = _torch_dtype(dtype)
    if math.prod(shape) > LARGE:
        return torch.empty(tuple(shape), dtype=kind, device="meta")
    if kind.is_floating_point or kind.is_complex:
        return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0)).to(kind)
    return torch.zeros(tuple(shape), dtype=kind)


def _torch_dtype(name: str) -> Any:
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        known = [n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype)]
        raise SourceError(f"{name!r} is not a dtype.{did_you_mean(name, known)}")
    return found


def _cast(value: Any, dtype: str) -> Any:
    from .compiler.structure import map_tensors

    to = _torch_dtype(dtype)
    return map_tensors(lambda t: t.to(to) if t.is_floating_point() else t, value)
