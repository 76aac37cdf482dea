"""Predicted eager peaks of training steps 1 and 2 against the profiler's, to the byte: models x optimizers, and the usual variants.

`python -m benchmarks.training_peak [--json PATH] [--quick] [--resume FILE] [--only CASE ...] [--threads N]`; a case is
`model|optimizer|variant`.
Both peaks are bytes above what is alive before step 1, so that optimizer state and kept gradients count in step 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .figures import Figure, finish
from .peak_models import build
from .peak_runs import run_all, serve

MODELS = (
    "builtin:resnet8 builtin:ds_cnn builtin:mobilenet_v1_025_vww builtin:resnet18 builtin:mobilenet_v2 builtin:densenet121 builtin:unet "
    "builtin:bert_tiny builtin:lstm builtin:transformer_block torchvision:squeezenet1_0 torchvision:shufflenet_v2_x1_0 "
    "torchvision:efficientnet_b0 torchvision:convnext_tiny torchvision:regnet_y_400mf torchvision:mobilenet_v3_small timm:ghostnet_100 "
    "timm:mobilevit_xxs timm:edgenext_xx_small timm:repvgg_a0 timm:lcnet_050 transformers:BertConfig transformers:GPT2Config "
    "transformers:T5Config transformers:LlamaConfig transformers:BartConfig transformers:AlbertConfig transformers:OPTConfig "
    "transformers:MambaConfig"
)
OPTIMIZERS = ("sgd:momentum=0.9", "adam", "adamw:foreach", "adamw:fused")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "zeroed": {"set_to_none": False},
    "autocast": {"autocast": "bfloat16"},
    "checkpointed": {},
}
VARIED = {
    "accumulate": ("builtin:resnet8", "builtin:lstm", "torchvision:shufflenet_v2_x1_0", "transformers:GPT2Config", "timm:ghostnet_100"),
    "zeroed": ("builtin:mobilenet_v2", "builtin:bert_tiny", "torchvision:squeezenet1_0", "transformers:T5Config", "timm:edgenext_xx_small"),
    "autocast": (
        "builtin:resnet18",
        "builtin:transformer_block",
        "torchvision:efficientnet_b0",
        "transformers:BertConfig",
        "transformers:LlamaConfig",
    ),
    "checkpointed": (
        "timm:mobilevit_xxs",
        "timm:repvgg_a0",
        "transformers:BertConfig",
        "transformers:GPT2Config",
        "transformers:LlamaConfig",
    ),
}
SIDE, BATCH = 64, 2


def cases() -> list[str]:
    """Every model with every optimizer, then the variants."""
    plain = [f"{m}|{o}|plain" for m in MODELS.split() for o in OPTIMIZERS]
    return plain + [f"{m}|adamw|{variant}" for variant, models in VARIED.items() for m in models]


def main() -> int:
    parser = argparse.ArgumentParser(description="Predicted eager peaks of training steps 1 and 2 against the profiler's.")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="every ninth case")
    parser.add_argument("--resume", help="keep results in this file and go on from them")
    parser.add_argument("--only", nargs="+", help="just these cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(compare, options.threads)
    chosen = options.only or (cases()[::9] if options.quick else cases())
    label = f"training, {options.threads} threads"
    found = run_all("benchmarks.training_peak", ["--worker", "--threads", str(options.threads)], chosen, label, options.resume)
    steps = [(case, step, *_peaks(answer, step)) for case, answer in found.items() for step in ("1", "2")]
    exact = sum(predicted == truth for _, _, predicted, truth in steps)
    worst = max((abs(predicted - truth) / max(truth, 1) for _, _, predicted, truth in steps), default=0.0)
    phases = [(p, r["truth"][k]) for r in found.values() if "truth" in r for k, p in r["predicted"].items()]
    models = len({case.split("|")[0] for case in found})
    full = not (options.quick or options.only)
    figures = [
        Figure(
            "training peaks equal the profiler's to the byte, steps 1 and 2",
            ">= 95 % over >= 25 models x 4 optimizers and variants" if full else ">= 95 % of the chosen cases",
            f"{exact} of {len(steps)} ({exact / max(len(steps), 1):.1%}) over {models} models, {len(found)} cases",
            exact >= 0.95 * len(steps) and (models >= 25 or not full),
        ),
        Figure("largest deviation of a training peak", "<= 0.5 %", f"{worst:.3%}", worst <= 0.005),
        Figure("peaks of single phases equal to the byte", "stated", f"{sum(p == t for p, t in phases)} of {len(phases)}", True),
    ]
    rows = [
        [case, step, f"{predicted:,}", f"{truth:,}", predicted - truth, found[case].get("seconds", "-")]
        for case, step, predicted, truth in steps
    ]
    notes = [f"missed: {case}: {answer.get('error') or _why(answer)}" for case, answer in found.items() if _missed(answer)]
    columns = ["model|optimizer|variant", "step", "predicted", "profiler", "off", "trace and oracle s"]
    return finish("training_peak", figures, columns, rows, threads=options.threads, notes=notes, json_path=options.json)


def _peaks(answer: dict[str, Any], step: str) -> tuple[int, int]:
    """Predicted and true peak of a step; (-1, 0) when the case failed."""
    if "truth" not in answer:
        return -1, 0
    return tuple(max(v for k, v in answer[which].items() if k[0] == step) for which in ("predicted", "truth"))  # type: ignore[return-value]


def _missed(answer: dict[str, Any]) -> bool:
    return any(p != t for p, t in (_peaks(answer, step) for step in "12"))


def _why(answer: dict[str, Any]) -> str:
    off = {k: v - answer["truth"][k] for k, v in answer["predicted"].items() if v != answer["truth"][k]}
    at = {k: " > ".join(answer["truth_at"][k][-3:]) for k in off}
    return f"off by {off} B; profiler at {at}; not measured: {answer['unmeasured'] or 'none'}"


def compare(case: str) -> dict[str, Any]:
    """Predicted and true peaks by `"step phase"`, one thread count, one process."""
    from neaptide.compiler.optimizers import make_optimizer
    from neaptide.compiler.oracle import with_workspaces
    from neaptide.compiler.training import TrainingLoop, trace_training
    from neaptide.passes.liveness import eager_liveness

    from .ground_truth import mark, peaks_by_mark

    name, optimizer, variant = case.split("|")
    options = VARIANTS[variant]
    loop = TrainingLoop(**options)

    def fresh() -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        model, args, kwargs = build(name, side=SIDE, batch=BATCH)
        if variant == "checkpointed":
            enable = getattr(model, "gradient_checkpointing_enable", None) or model.set_grad_checkpointing
            enable()
        return model.train(), args, kwargs

    predicted: dict[str, int] = {}
    unmeasured: dict[str, str] = {}
    began = time.perf_counter()
    model, args, kwargs = fresh()
    graphs = with_workspaces(trace_training(model, args, kwargs, optimizer=optimizer, step=step, **options) for step in (1, 2))
    for step, graph in enumerate(graphs, 1):
        unmeasured |= graph.meta["kernels"]["unmeasured"]
        carried = sum(s.nbytes for s in graph.storages if s.role in ("gradient", "optimizer_state") and graph.birth[s.id] < 0)
        for node, live in zip(graph.nodes, eager_liveness(graph).live, strict=True):
            key = f"{step} {node.phase}"
            predicted[key] = max(predicted.get(key, 0), carried + int(live))
    seconds = time.perf_counter() - began

    def steps(model: Any) -> None:
        optim = make_optimizer(optimizer, [p for p in model.parameters() if p.requires_grad])
        for step in (1, 2):
            loop.step(model, args, kwargs, optim, lambda phase, step=step: mark(f"{step} {phase}"))

    steps(model)
    model, args, kwargs = fresh()
    truth: dict[str, int] = {}
    at: dict[str, tuple[str, ...]] = {}
    for key, peak in peaks_by_mark(lambda: steps(model)):
        if peak.nbytes > truth.get(key, -1):
            truth[key], at[key] = peak.nbytes, peak.at
    return {"predicted": predicted, "truth": truth, "truth_at": at, "unmeasured": unmeasured, "seconds": round(seconds, 2)}


if __name__ == "__main__":
    sys.exit(main())
