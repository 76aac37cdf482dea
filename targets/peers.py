"""Other runtimes that run the same model: torch eager and onnxruntime on this machine's CPU."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..compiler.models import is_onnx, load_model
from .onnx_session import onnx_session


@dataclass(frozen=True, slots=True)
class Runner:
    """`run()` makes one inference on the inputs it was made with."""

    run: Callable[[], Any]
    version: str


@contextmanager
def peer_runners(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, inputs: Sequence[np.ndarray], *, threads: int
) -> Iterator[tuple[dict[str, Runner], tuple[str, ...]]]:
    """Runners by name ("torch", "onnxruntime") with `threads` threads each, and a sentence for each runtime that cannot run `model`.

    A torch model goes to onnxruntime through `torch.onnx`; an ONNX model does not go to torch. A module runs as a copy in inference
    mode. Within the context torch has `threads` threads in the whole process, after it as many as before.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield _runners(model, args, kwargs, inputs, threads)
    finally:
        torch.set_num_threads(before)


def _runners(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, inputs: Sequence[np.ndarray], threads: int
) -> tuple[dict[str, Runner], tuple[str, ...]]:
    import torch

    runners: dict[str, Runner] = {}
    module, content = load_model(model), None
    if is_onnx(module):
        module, content = None, module.SerializeToString()
    if isinstance(module, torch.export.ExportedProgram):
        module = module.module()
    elif isinstance(module, torch.nn.Module):
        module = copy.deepcopy(module).eval()
    if module is not None:
        given = tuple(args) if args or kwargs else tuple(map(torch.from_numpy, inputs))
        named = dict(kwargs or {})

        def eager() -> Any:
            with torch.inference_mode():
                return module(*given, **named)

        runners["torch"] = Runner(eager, torch.__version__)
        absent = [name for name in ("onnxruntime", "onnxscript") if find_spec(name) is None]
        if not absent:
            content = _exported(module, given, named)
            if content is None:
                return runners, ("onnxruntime is not beside it: torch.onnx does not export this model",)
    absent = [name for name in ("onnxruntime",) if find_spec(name) is None] if content is not None else ["onnxruntime or onnxscript"]
    if absent or content is None:
        return runners, (f"onnxruntime is not beside it: {', '.join(absent)} not installed (pip install 'neaptide[dev]')",)
    session = onnx_session(content, threads=threads)
    feeds = {spec.name: array for spec, array in zip(session.get_inputs(), inputs, strict=True)}
    runners["onnxruntime"] = Runner(lambda: session.run(None, feeds), version("onnxruntime"))
    return runners, ()


def _exported(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    """`module` as ONNX; None for one that torch.onnx does not export."""
    import torch

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, args, kwargs=kwargs, dynamo=True, verbose=False)
    except Exception:  # what an exporter of torch's raises of a model that it does not take has no type of its own
        return None
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model_proto.SerializeToString()
