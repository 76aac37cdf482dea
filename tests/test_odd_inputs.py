"""Models and inputs that are no ordinary ones: analysed as what they are, or refused in a sentence that names the thing and the way out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import neaptide
from neaptide.compiler.errors import NeaptideError
from neaptide.targets.measure import measure

X = torch.randn(4, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x).relu()


class Around(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) + 1


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class SparseWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.weight, x)


class Wrapped(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(str(function))


def raises(x):
    raise KeyError("boo")


def rows(layout):
    return torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)


# Name -> model, arguments, and what each refusal says.
NOWHERE = {
    "COO": (Net, torch.eye(4).to_sparse, "argument 0 is a sparse tensor .COO.*to_dense"),
    "CSR": (Net, torch.eye(4).to_sparse_csr, "argument 0 is a sparse tensor .CSR.*to_dense"),
    "CSC": (Net, torch.eye(4).to_sparse_csc, "argument 0 is a sparse tensor .CSC.*to_dense"),
    "BSR": (Net, lambda: torch.eye(4).to_sparse_bsr((2, 2)), "argument 0 is a sparse tensor .BSR.*to_dense"),
    "jagged": (Net, lambda: rows(torch.jagged), "argument 0 is a nested tensor.*to_padded_tensor"),
    "nested": (Net, lambda: rows(torch.strided), "argument 0 is a nested tensor.*to_padded_tensor"),
    "quantized": (Net, lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "argument 0 is a quantized tensor.*dequantize"),
    "sparse weight": (SparseWeight, lambda: X, "weight of the SparseWeight is a sparse tensor"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), lambda: X, "LazyLinear '0' has no weight yet.*model.x."),
    "lazy norm": (nn.LazyBatchNorm1d, lambda: X, "the LazyBatchNorm1d has no weight yet.*model.x."),
    "raises": (lambda: Calls(raises), lambda: X, "KeyError.*boo"),
}
# What can be analysed, or traced at least, and not measured.
UNMEASURED = {
    "meta weights": (lambda: nn.Linear(4, 4, device="meta"), lambda: X, "weight 'weight' is on the meta device"),
    "meta input": (Net, lambda: X.to("meta"), "argument 0 is on the meta device"),
    "fake input": (Net, lambda: FakeTensorMode().from_tensor(X), "argument 0 is on the meta device or fake"),
    "subclass": (Net, lambda: Wrapped(X), "argument 0 is a Wrapped"),
    "complex": (lambda: Calls(lambda x: x * 2), lambda: X.to(torch.complex64), "complex numbers.*view_as_real"),
    "no tensor out": (lambda: Calls(lambda x: None), lambda: X, "returns no tensor"),
    "a number in": (lambda: Calls(lambda x: x * 2), lambda: 3, "returns no tensor"),
    "text in": (Net, lambda: "a", "TypeError"),
    "an object in": (Net, object, "TypeError"),
}


def traced(model, args):
    neaptide.trace(model, args)


def analysed(model, args):
    neaptide.analyze(model, args, kernels=False)


def trained(model, args):
    neaptide.analyze(model, args, mode="training", kernels=False)


def on_mcu(model, args):
    pytest.importorskip("tvm")
    measure(model, args, target="cortex-m4f")


def on_cpu(model, args):
    pytest.importorskip("tvm")
    measure(model, args, target="cpu", trials=0)


@pytest.mark.parametrize("way", [traced, analysed, trained, on_mcu, on_cpu])
@pytest.mark.parametrize("name", NOWHERE)
def test_refused_everywhere_in_one_sentence(name, way):
    made, given, said = NOWHERE[name]
    with pytest.raises(NeaptideError, match=said) as caught:
        way(made(), (given(),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", [on_mcu, on_cpu])
@pytest.mark.parametrize("name", UNMEASURED)
def test_not_measured_in_one_sentence(name, way):
    made, given, said = UNMEASURED[name]
    with pytest.raises(NeaptideError, match=said) as caught:
        way(made(), (given(),))
    assert "\n" not in str(caught.value)


def test_compiled_parts_are_what_they_were_made_from():
    part = torch.compile(Net())
    model = Around(part)
    plain = neaptide.trace(Around(Net()), (X,))
    for found in (neaptide.trace(model, (X,)), neaptide.trace(torch.compile(model), (X,))):
        assert [n.op for n in found.nodes] == [n.op for n in plain.nodes]
    assert model.part is part
    assert neaptide.analyze(model, (X,), mode="training", kernels=False).planned_peak > 0
    assert model.part is part


def test_compiled_in_place_and_inside_a_factory():
    plain = [n.op for n in neaptide.trace(Around(Net()), (X,)).nodes]
    model = Around(Net())
    model.part.compile()
    call = model.part._compiled_call_impl
    assert [n.op for n in neaptide.trace(model, (X,)).nodes] == plain
    assert call is not None and model.part._compiled_call_impl is call
    graph = neaptide.trace(lambda: Around(torch.compile(Net())), (X,))
    assert [n.op for n in graph.nodes] == plain
    assert not any("_orig_mod" in s.name for s in graph.storages)


def test_a_bare_tensor_is_one_argument():
    pytest.importorskip("tvm")
    assert measure(Net(), X, target="cpu", trials=0).max_error is not None  # pyright: ignore[reportArgumentType]


def test_training_has_no_real_run():
    with pytest.raises(NeaptideError, match="allow_real_run=True is for inference"):
        neaptide.analyze(Net(), (X,), mode="training", allow_real_run=True)

    class Branches(Net):
        def forward(self, x):
            return x if torch.rand(1) > 0.5 else self.inner(x)

    with pytest.raises(NeaptideError, match="analyze its inference with allow_real_run=True"):
        neaptide.analyze(Branches(), (X,), mode="training", kernels=False)


def test_sparse_gradients_are_named():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4))
    with pytest.raises(NeaptideError, match=r"sparse tensor.*nn\.Embedding\(sparse=False\)"):
        neaptide.analyze(model, (torch.tensor([1, 2]),), mode="training", kernels=False)


def test_one_tensor_passed_twice_is_two_inputs():
    pytest.importorskip("tvm")
    model = Calls(lambda a, b: a["x"] + b[0])
    cost = measure(model, ({"x": X}, [X]), target="cpu", trials=0)
    assert cost.max_error is not None and cost.max_error < 1e-6


def test_arrays_are_no_tensors():
    with pytest.raises(NeaptideError):
        neaptide.trace(Net(), (np.ones((4, 4), np.float32),))
