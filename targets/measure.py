"""`measure`: what a model costs on a target, found by running it there, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import NeaptideError
from ..compiler.models import load_model, model_name
from .cost import Cost
from .database import CostDatabase
from .remember import remember
from .spec import Target, load_target

if TYPE_CHECKING:
    from .mcu.measure import Codegen, Emulator
    from .mcu.toolchain import Compiler
    from .predictors import OperatorPredictor


def measure(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target,
    name: str | None = None,
    compiler: Compiler = "zig",
    codegen: Codegen = "c",
    emulator: Emulator | None = None,
    stack: int | None = None,
    inplace: bool = True,
    folder: str | Path | None = None,
    threads: int = 1,
    trials: int | None = None,
    database: CostDatabase | None = None,
    predict: bool = False,
    predictor: OperatorPredictor | str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Cost:
    """Run one inference of `model` on `target` and say what it took; its outputs are compared with the framework's own.

    On a CUDA GPU of the target's architecture times are measured; where there is none the cost is a lower bound, of kind "bound".

    `model`: a torch module with example `args` and `kwargs`, a `torch.export.ExportedProgram`, an `onnx.ModelProto`, or the path of
    an `.onnx` or `.pt2` file (those take random inputs where `args` are absent). `target`: a name that `neaptide targets` lists, the
    path of a TOML file, or a `Target`; a microcontroller, a CUDA GPU or this machine's CPU. On a microcontroller,
    `codegen`: operators as C, compiled by `compiler`, or as objects from TVM's own LLVM; `stack`: bytes kept for it (None: 4,096);
    `inplace`: let a result lie over an operand that dies there, where that lowers the arena.
    `folder`: an existing folder that keeps the generated sources and the ELF. `database`: where a measurement is remembered, nowhere
    when None; bounds are not. On a CPU, `threads` of it. On a CPU or GPU, `trials`: schedules to time for each distinct operator
    (None: 32; 0: none, and what `database` does not know is untuned: on a CPU it has no time, on a GPU that of a default schedule);
    torch, and on a CPU onnxruntime, run beside it.

    `predict`: build and run nothing, but add up what `database` (None: the user's own) knows of the model's operators, and models of
    those it does not know: the cost is of kind "predicted", with its expected relative `error`. `predictor`: what `neaptide cost fit`
    wrote, to predict with instead.

    Outputs that differ from the framework's by more than `targets.verdict` allows are said: `correct` is False, nothing is remembered.

    Raises `BudgetError` when the part cannot hold the model, before anything is linked; `NeaptideError` when there is nothing to
    predict from; `MissingExtraError` without `neaptide[mcu]`.
    """
    spec = load_target(target) if isinstance(target, str) else target
    name, model = name or model_name(model), load_model(model)
    if hasattr(model, "named_modules"):  # a torch module, told without importing torch
        import torch

        from ..compiler.ordinary import check_arguments, check_values
        from ..compiler.trace import as_module

        model = as_module(model)
        args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
        check_arguments(args, kwargs or {})
        check_values(model, args, kwargs or {})
        args, kwargs = _apart(args, kwargs or {})
    if predict or predictor is not None:
        from .predict import predicted_cost

        if codegen == "llvm":
            raise NeaptideError("predictions are of operators in C; codegen='llvm' is measured only")

        (progress or (lambda _: None))(f"predicting for {spec.name}")
        return predicted_cost(
            model, args, kwargs, target=spec, name=name, compiler=compiler, stack=stack, inplace=inplace, threads=threads,
            database=database, predictor=predictor,
        )  # fmt: skip
    if spec.kind == "gpu":
        from .tvm.cuda import TRIALS, measure_cuda

        count = TRIALS if trials is None else trials
        place = None if folder is None else Path(folder)
        found = measure_cuda(model, args, kwargs, target=spec, name=name, folder=place, trials=count, database=database, progress=progress)
        return _explained(found, model, args, kwargs)
    if spec.kind == "cpu":
        from .tvm.cpu import TRIALS, measure_cpu

        count = TRIALS if trials is None else trials
        found = measure_cpu(
            model, args, kwargs, target=spec, name=name, threads=threads, trials=count, database=database, progress=progress
        )
        return _explained(found, model, args, kwargs)
    from .mcu.firmware import STACK
    from .mcu.measure import measure_network
    from .mcu.network import prepare

    say = progress or (lambda _: None)
    say("importing and planning")
    network = prepare(model, args, kwargs, name=name, inplace=inplace)
    say(f"building and running for {spec.name}")
    place = None if folder is None else Path(folder)
    kept = STACK if stack is None else stack
    cost = measure_network(network, target=spec, compiler=compiler, codegen=codegen, emulator=emulator, stack=kept, folder=place)
    if database is not None and cost.correct:
        remember(cost, database)
    return _explained(cost, model, args, kwargs)


def _explained(cost: Cost, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Cost:
    """A cost with wrong outputs says which operator differs first."""
    if cost.correct is not False:
        return cost
    from .tvm.differing import first_differing

    return replace(cost, reasons=(cost.reasons[0], first_differing(model, args, kwargs), *cost.reasons[1:]))


def _apart(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every tensor in them once: one that is passed twice is two inputs of the network."""
    from ..compiler.structure import map_tensors

    seen: set[int] = set()

    def own(tensor: Any) -> Any:
        again = id(tensor) in seen
        seen.add(id(tensor))
        return tensor.clone() if again else tensor

    return tuple(map_tensors(own, tuple(args))), dict(map_tensors(own, dict(kwargs)))
