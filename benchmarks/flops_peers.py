"""Runs inside the peers' environment: what one FLOP counter says about every case, as JSON on the last line of stdout.

`python -m benchmarks.flops_peers TOOL`, from the repository root. A result is a number of multiply-adds, or a string that says
how the tool failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.flops_cases import Case, network_cases, op_cases


def flop_counter_mode(module: nn.Module, args: tuple[Any, ...]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(*args)
    return counter.get_total_flops() / 2


def fvcore(module: nn.Module, args: tuple[Any, ...]) -> float:
    from fvcore.nn import FlopCountAnalysis  # pyright: ignore[reportMissingImports]

    analysis = FlopCountAnalysis(module, args)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def ptflops(module: nn.Module, args: tuple[Any, ...]) -> float:
    import ptflops  # pyright: ignore[reportMissingImports]

    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, **named: Any) -> Any:
            return self.inner(*named.values())

    macs, _ = ptflops.get_model_complexity_info(
        Positional(),
        (1,),
        input_constructor=lambda _: {f"x{i}": a for i, a in enumerate(args)},
        backend="aten",
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
    )
    if macs is None:
        raise RuntimeError("no result")
    return float(macs)


def calflops(module: nn.Module, args: tuple[Any, ...]) -> float:
    from calflops import calculate_flops  # pyright: ignore[reportMissingImports]

    _, macs, _ = calculate_flops(module, args=list(args), output_as_string=False, print_results=False, print_detailed=False)
    return float(macs)


def thop(module: nn.Module, args: tuple[Any, ...]) -> float:
    from thop import profile  # pyright: ignore[reportMissingImports]

    macs, _ = profile(module, inputs=args, verbose=False)
    return float(macs)


def deepspeed(module: nn.Module, args: tuple[Any, ...]) -> float:
    from deepspeed.profiling.flops_profiler import get_model_profile  # pyright: ignore[reportMissingImports]

    _, macs, _ = get_model_profile(module, args=list(args), print_profile=False, detailed=False, as_string=False)
    return float(macs)


def torchinfo(module: nn.Module, args: tuple[Any, ...]) -> float:
    from torchinfo import summary  # pyright: ignore[reportMissingImports]

    return float(summary(module, input_data=args, verbose=0, device="cpu").total_mult_adds)


TOOLS: dict[str, tuple[Callable[[nn.Module, tuple[Any, ...]], float], str]] = {
    "FlopCounterMode": (flop_counter_mode, "torch"),
    "fvcore": (fvcore, "fvcore"),
    "ptflops": (ptflops, "ptflops"),
    "calflops": (calflops, "calflops"),
    "thop": (thop, "thop"),
    "DeepSpeed": (deepspeed, "deepspeed"),
    "torchinfo": (torchinfo, "torchinfo"),
}


def isolated(count: Callable[[nn.Module, tuple[Any, ...]], float], case: Case) -> float | str:
    """What `count` says, in a forked process: several tools patch torch and leave the patches behind, above all when they fail."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def answer() -> None:
        with contextlib.redirect_stdout(io.StringIO()), torch.set_grad_enabled(case.training):
            try:
                there.send(float(count(case.module().train(case.training), case.args())))
            except Exception as error:  # a peer that fails on a case is a result of this comparison
                there.send(type(error).__name__)

    process = context.Process(target=answer)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return "crash"
    finally:
        process.join()


def main() -> None:
    count, package = TOOLS[sys.argv[1]]
    torch.set_num_threads(1)
    cases = [c for c in [*op_cases(), *network_cases()] if not (c.elementwise or c.causal)]
    print(json.dumps({"version": version(package), "results": {c.name: isolated(count, c) for c in cases}}))


if __name__ == "__main__":
    main()
