"""Single operators on an emulated Cortex-M4F against torch, over their options; what is wrong is said, and what cannot be is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm")

from neaptide.compiler.errors import NeaptideError
from neaptide.targets.cost import Cost
from neaptide.targets.measure import measure
from neaptide.targets.remember import remember
from neaptide.targets.verdict import judged, tolerance

SMALL, BIG = torch.linspace(-0.3, 0.3, 41), torch.linspace(-30.0, 30.0, 121)
ODD = torch.tensor([[float("nan"), 1.0, -1.0, 3.0, float("inf"), -float("inf"), 0.0, -2.0]])
X, IMAGE = (
    torch.randn(3, 7, generator=torch.Generator().manual_seed(0)),
    torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(1)),
)
ROWS = torch.tensor([[1, 2, 3, 0, 0, 1, 2]])
PLACES = torch.tensor([-1, 0, -3])


class Op(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


# Several results of one input at a time: a build takes longer than a run.
OPS = {
    "near zero": (lambda x: (torch.expm1(x), torch.log1p(x), F.elu(x, 0.7), F.selu(x), F.celu(x, 0.4), torch.sinh(x)), SMALL),
    "angles": (lambda x: (torch.sin(x), torch.cos(x), torch.atan(x), torch.tan(x / 21)), BIG),
    "inverse angles": (lambda x: (torch.asin(x), torch.acos(x), torch.atanh(x), torch.asinh(x * 9)), SMALL * 3),
    "two angles": (lambda x: torch.atan2(x, x.flip(0)), BIG),
    "exponents": (lambda x: (x**2, x**3, x.abs() ** 0.5, (x.abs() + 1) ** -1.5, (x.abs() + 1) ** 0.75, torch.exp2(x), 3**x), SMALL * 9),
    "not numbers": (lambda x: (F.relu(x), F.relu6(x), F.max_pool1d(x, 2), x.amax(1), F.hardtanh(x), x.clamp(min=0.5)), ODD),
    "absolute": (lambda x: (x.abs(), F.softsign(x), F.logsigmoid(x), F.hardshrink(x, 0.4), F.normalize(x, dim=0)), SMALL * 4),
    "spread": (lambda x: (x.std(1), x.var(0, correction=0), torch.var_mean(x, 1, keepdim=True)[0], x.std()), X),
    "from the end": (lambda x: (x[:, -1], x[-2], x[PLACES], x[:, PLACES], x[..., -3:-1], x[PLACES, PLACES]), X),
    "reductions": (lambda x: (x.logsumexp(1), x.amin(0), x.prod(1), x.cumprod(1), x.norm(), x.norm(1, dim=1)), X),
    "average pools": (
        lambda x: (F.avg_pool2d(x, 3, 2, 1, divisor_override=5), F.avg_pool2d(x, 2, 1, 1, count_include_pad=False)), IMAGE,
    ),
    "adaptive pools": (lambda x: (F.adaptive_max_pool2d(x, (2, 3)), F.adaptive_max_pool1d(x[0], 3)), IMAGE),
    "nearest": (
        lambda x: (F.interpolate(x, (13, 5)), F.interpolate(x, scale_factor=1.7), F.interpolate(x, (4, 9), mode="nearest-exact")), IMAGE,
    ),
    "bilinear": (
        lambda x: (
            F.interpolate(x, (13, 5), mode="bilinear"), F.interpolate(x, (13, 5), mode="bilinear", align_corners=True),
            F.interpolate(x, scale_factor=1.5, mode="bilinear"), F.interpolate(x, (3, 4), mode="bilinear", antialias=True),
        ), IMAGE,
    ),
    "cubic and linear": (lambda x: (F.interpolate(x, (9, 5), mode="bicubic"), F.interpolate(x[0], 13, mode="linear")), IMAGE),
    "norms": (lambda x: (F.group_norm(x, 2), F.rms_norm(x, (7,)), F.local_response_norm(x, 3), F.instance_norm(x)), IMAGE),
    "unfolded": (lambda x: (F.unfold(x, 3, 1, 1, 2), F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[..., :6], 2)), IMAGE),
    "scattered": (lambda x: torch.zeros(4, 7).scatter(0, ROWS, x[:1]).scatter(1, torch.tensor([[2], [0]]), 9.0), X),
    "whole numbers": (lambda x: (x.long() >> 1, x.long() << 2, torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0]))), X * 9),
    "masked": (lambda x: (x.masked_fill(x < 0, -float("inf")).softmax(-1), torch.where(x > 0, x, 2.0)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_results_are_torchs(name):
    function, x = OPS[name]
    cost = measure(Op(function).eval(), (x,), target="cortex-m4f")
    assert cost.correct and cost.max_error is not None and cost.max_error < 1e-5, cost.reasons


@pytest.mark.parametrize(
    ("function", "x", "most"),
    [
        (torch.square, X, 8), (lambda x: F.rms_norm(x, (64,)), torch.randn(4, 64), 20), (torch.cos, BIG, 120),
        (lambda x: F.interpolate(x, (13, 11), mode="bilinear"), IMAGE, 40), (lambda x: F.interpolate(x, scale_factor=2), IMAGE, 8),
    ],
)  # fmt: skip
def test_instructions_an_output(function, x, most):
    cost = measure(Op(function).eval(), (x,), target="cortex-m4f")
    assert (cost.instructions or 0) / function(x).numel() <= most


def test_half_precision_is_refused_by_name():
    with pytest.raises(NeaptideError, match=r"computes in half precision.*convert the model to float32"):
        measure(Op(lambda x: (x.half() * 2).float()).eval(), (X,), target="cortex-m4f")


def test_wrong_outputs_are_said_and_not_kept(tmp_path):
    import numpy as np

    from neaptide.targets.database import CostDatabase

    cost = Cost("m", "measured", "net", instructions=5, fits=True, reasons=("fits: all of it",))
    right = judged(cost, [np.ones(3, np.float32)], [np.ones(3, np.float32)])
    assert right.correct and right.fits and right.reasons == cost.reasons and right.max_error == 0.0
    wrong = judged(cost, [np.array([1.0, 1.5], np.float32)], [np.ones(2, np.float32)])
    assert wrong.correct is False and wrong.fits is False and wrong.reasons[0].startswith("wrong outputs: output 0 is off by 0.5")
    with CostDatabase(tmp_path / "costs.sqlite") as database, pytest.raises(NeaptideError, match="is not kept: wrong outputs"):
        remember(wrong, database)
    assert not judged(cost, [np.array([1, 2])], [np.array([1, 3])]).correct
    assert tolerance("int64") == 0.0 and tolerance("float32") < tolerance("float32", 1e9) < tolerance("float16")


def test_the_first_operator_that_differs_is_named(monkeypatch):
    from neaptide.targets.tvm import plain_graph
    from neaptide.targets.tvm.differing import first_differing

    model = Op(lambda x: torch.relu(F.selu(torch.sin(x)) + 1)).eval()
    assert "each of its operators alone gives torch's result" in first_differing(model, (X,), {})
    monkeypatch.setattr(plain_graph, "SAME", {k: v for k, v in plain_graph.SAME.items() if k != "elu.default" and k != "selu.default"})
    assert "the first operator that differs is aten.elu.default of 3x7" in first_differing(model, (X,), {})
