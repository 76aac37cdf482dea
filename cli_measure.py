"""`neaptide measure SOURCE --target NAME`: the command."""

from __future__ import annotations

import json as codec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import cli_options as opt
from .cli_outputs import Outputs
from .report.console import Stages, output

Target = Annotated[
    str, typer.Option("--target", "-t", metavar="NAME", help="A target that `neaptide targets` lists, or a TOML file.", show_default=False)
]
Compiler = Annotated[
    Literal["zig", "gcc"], typer.Option("--compiler", metavar="NAME", help="`zig` (default, from pip) or `gcc` (arm-none-eabi-gcc).")
]
Codegen = Annotated[
    Literal["c", "llvm"], typer.Option("--codegen", metavar="NAME", help="Operators as `c` (default) or as objects from TVM's own `llvm`.")
]
Emulator = Annotated[
    Literal["auto", "unicorn", "qemu", "both"],
    typer.Option("--emulator", metavar="NAME", help="`unicorn`, `qemu` or `both`, compared. Default: unicorn where it has the core."),
]
InPlace = Annotated[bool, typer.Option("--inplace/--no-inplace", help="Results over operands that die there, where it saves arena.")]
Keep = Annotated[str, typer.Option("--keep", metavar="FOLDER", help="Keep the generated sources and the ELF there.", show_default=False)]
Threads = Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads, on a CPU.")]
Trials = Annotated[
    int, typer.Option("--trials", min=0, metavar="N", help="Schedules to time per distinct operator, on a CPU or GPU; 0: none.")
]
Predict = Annotated[
    bool, typer.Option("--predict", help="Build and run nothing: predict from the operators that were measured, with an error bar.")
]
Predictor = Annotated[
    str, typer.Option("--predictor", metavar="FILE", help="Predict with what `neaptide cost fit` wrote.", show_default=False)
]
Database = Annotated[
    str, typer.Option("--database", metavar="FILE", help="Default: $NEAPTIDE_COSTS, else the user's data folder.", show_default=False)
]


WRONG = 4  # the exit code for outputs that are not the framework's


def measure(
    source: opt.Source,
    target: Target,
    input: opt.Inputs = [],  # noqa: B006
    compiler: Compiler = "zig",
    codegen: Codegen = "c",
    emulator: Emulator = "auto",
    inplace: InPlace = True,
    keep: Keep = "",
    threads: Threads = 1,
    trials: Trials = 32,
    predict: Predict = False,
    predictor: Predictor = "",
    database: Database = "",
    json: opt.Json = False,
    html: opt.Html = "",
) -> int:
    """Run a model on a microcontroller's emulator: instructions by operator, arena, stack, flash, and the error of its outputs.

    On this machine's CPU: the latency of tuned operators, beside torch and onnxruntime. On a GPU target: the same where such a GPU is,
    else a lower bound and what each kernel takes. With `--predict`, nothing is built or run.
    """
    from .report.measurement import measurement_view
    from .targets.measure import measure as run
    from .targets.side_costs import SideCosts
    from .targets.spec import load_target

    outputs = Outputs(html)
    spec = load_target(target)
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
    with Stages() as stages, SideCosts(database or None) as costs:
        stages("building the model")
        model, args, kwargs, name = _model(source, input)
        cost = run(
            model, args, kwargs, target=spec, name=name, compiler=compiler, codegen=codegen,
            emulator=None if emulator == "auto" else emulator, inplace=inplace, folder=keep or None,
            threads=threads, trials=trials, database=costs, predict=predict, predictor=predictor or None, progress=stages,
        )  # fmt: skip
    if html:
        from .compiler.output_files import write_text
        from .report.measurement_html import render_measurement

        outputs.write(html, lambda path: write_text(path, render_measurement(cost, spec)))
    if json:
        print(codec.dumps(cost.to_dict(), indent=2, allow_nan=False))
    else:
        output().print(measurement_view(cost))
    costs.raise_lost()
    outputs.raise_failed()
    return WRONG if cost.correct is False else 0


def _model(source: str, input: list[str]) -> tuple[Any, Any, Any, str]:
    """A model that can run, its arguments and its name. Files are opened here, once."""
    from .compiler.errors import SourceError
    from .compiler.models import SUFFIXES, load_model
    from .sources import InputSpec, resolve

    path = Path(source)
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise SourceError(f"{source!r} does not exist")
        if input:
            raise SourceError(f"{source!r} has its own shapes; --input is for factories and built-in models")
        return load_model(path), (), {}, path.stem
    if path.suffix.lower() == ".json":
        raise SourceError(f"{source!r} is a graph without weights; measure needs a model: a built-in one, a factory, .onnx or .pt2")
    model = resolve(source, [InputSpec.parse(text) for text in input], runnable=True)
    return model.target, model.args, model.kwargs, model.name
