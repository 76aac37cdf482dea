"""Schedules of our own for CPUs: each gives what the operator gives as it was written, at sizes where vectors and tiles do not fit."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="tvm not installed: pip install 'neaptide[tvm]'")


class Residual(nn.Module):
    """`x` + a pointwise convolution of it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class Products(nn.Module):
    """A batch of matrix products."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.bmm(a, b)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups), nn.ReLU6())


PRODUCTS = {
    "7x7 pixels": (conv(5, 19, 1), [(1, 5, 7, 7)]),
    "13x5 pixels, two images": (conv(3, 7, 1), [(2, 3, 13, 5)]),
    "residual": (Residual(11), [(1, 11, 6, 9)]),
    "one channel out": (conv(4, 1, 1), [(1, 4, 8, 8)]),
    "dense": (nn.Linear(12, 50), [(1, 12)]),
    "batched": (Products(), [(6, 5, 7), (6, 7, 33)]),
}
WINDOWS = {
    "depthwise": (conv(6, 6, 3, padding=1, groups=6), [(1, 6, 7, 7)]),
    "depthwise 5x5, stride 2": (conv(4, 4, 5, padding=2, stride=2, groups=4), [(2, 4, 15, 11)]),
    "stride 2": (conv(3, 10, 3, padding=1, stride=2), [(1, 3, 21, 19)]),
    "unpadded": (conv(3, 5, 3), [(1, 3, 9, 20)]),
    "dilated": (conv(2, 5, 3, padding=2, dilation=2), [(1, 2, 12, 17)]),
    "stride 3": (conv(2, 4, 3, stride=3), [(1, 2, 18, 15)]),
    "one tap, stride 2": (conv(5, 9, 1, stride=2), [(1, 5, 13, 13)]),
    "oblong": (nn.Conv2d(2, 3, (1, 5), padding=(0, 2)), [(1, 2, 8, 10)]),
}
OTHERS = {
    "grouped": (conv(8, 8, 3, padding=1, groups=2), [(1, 8, 8, 8)]),
    "pooling": (nn.MaxPool2d(2), [(1, 4, 8, 8)]),
    "softmax": (nn.Softmax(-1), [(2, 40)]),
    "fewer columns than a vector": (conv(4, 4, 1), [(1, 4, 1, 2)]),
}


def operators(model: nn.Module, shapes: list[tuple[int, ...]]) -> list:
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax

    torch.manual_seed(0)
    return list(fused_program(to_relax(model.eval(), [torch.randn(shape) for shape in shapes])).kernels.values())


def result(compiled, arrays: list[np.ndarray]) -> np.ndarray:
    import tvm

    tensors = [tvm.runtime.tensor(array) for array in arrays]
    compiled.function(*tensors)
    return tensors[-1].numpy()


@pytest.mark.parametrize(("mcpu", "threads", "most"), [("host", 1, 4), ("host", 2, 1), ("x86-64-v3", 1, 1), ("x86-64", 1, 1)])
@pytest.mark.parametrize("name", [*PRODUCTS, *WINDOWS])
def test_schedules_compute_the_operator(name, mcpu, threads, most):
    from neaptide.targets.tvm.cpu_schedules import candidates
    from neaptide.targets.tvm.tune import build, cpu_target, tuned_module, unscheduled

    (func,) = operators(*(PRODUCTS | WINDOWS)[name])
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(tuple(map(int, p.shape))).astype(np.float32) for p in func.params]
    arrays[-1][:] = np.nan  # every element has to be written
    if mcpu != "host" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("code for another processor")
    machine = cpu_target(threads, mcpu)
    expected = result(unscheduled(func, machine), arrays)
    found = candidates(func, machine)
    assert found and all(schedule["kind"] == ("product" if name in PRODUCTS else "window") for schedule in found)
    for schedule in found[:most]:
        got = result(build(tuned_module(func, schedule, machine), machine), arrays)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=str(schedule))


@pytest.mark.parametrize("name", OTHERS)
def test_other_operators_are_left_to_the_search(name):
    from neaptide.compiler.errors import NeaptideError
    from neaptide.targets.tvm.cpu_schedules import candidates, scheduled
    from neaptide.targets.tvm.tune import cpu_target

    for func in operators(*OTHERS[name]):
        assert candidates(func, cpu_target(1)) == []
        if name != "fewer columns than a vector":
            with pytest.raises(NeaptideError, match="does not fit an operator"):
                scheduled(func, {"kind": "product", "rows": 1, "vectors": 1}, cpu_target(1))


def test_workspace_is_what_a_schedule_takes_from_the_pool():
    from neaptide.targets.tvm.cpu_schedules import candidates
    from neaptide.targets.tvm.tune import build, cpu_target, tuned_module, unscheduled

    one = cpu_target(1)
    (func,) = operators(conv(4, 4, 3, padding=1, groups=4), [(1, 4, 30, 30)])
    schedule = next(s for s in candidates(func, one) if s["together"] == 1)
    assert build(tuned_module(func, schedule, one), one).workspace == 32 * 32 * 4  # one padded channel; a row of sums is on the stack
    four = cpu_target(4)
    assert build(tuned_module(func, schedule, four), four).workspace == 4 * 32 * 32 * 4  # one for each thread
    written = unscheduled(func, one).workspace
    assert written == 4 * 32 * 32 * 4 + 4 * 30 * 30 * 4  # padded input and sums; the bias is added in place
    (func,) = operators(conv(5, 19, 1), [(1, 5, 7, 7)])
    assert build(tuned_module(func, candidates(func, one)[0], one), one).workspace == 0


def test_tiles_fit_the_registers():
    from neaptide.targets.tvm.pointwise import tile_sizes

    for rows, columns, lanes, registers in [(1, 16, 16, 32), (24, 3136, 16, 32), (1280, 49, 8, 16), (16, 12544, 4, 32)]:
        found = tile_sizes(rows, columns, lanes, registers)
        assert found and all(r * v + v + 1 <= registers and r <= rows and (v - 1) * lanes < columns for r, v in found)
    assert tile_sizes(8, 15, 16, 32) == []


def test_epilogues_that_move_elements_are_left_to_the_search():
    from neaptide.targets.tvm.cpu_schedules import candidates
    from neaptide.targets.tvm.tune import cpu_target

    te: Any = importlib.import_module("tvm.te")
    a, b = te.placeholder((20, 6), name="a", dtype="float32"), te.placeholder((6, 20), name="b", dtype="float32")
    k = te.reduce_axis((0, 6), name="k")
    product = te.compute((20, 20), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="product")
    kept = te.compute((20, 20), lambda i, j: product[i, j] + 1.0, name="kept")
    transposed = te.compute((20, 20), lambda i, j: product[j, i] + 1.0, name="transposed")
    repeated = te.compute((2, 20, 20), lambda n, i, j: product[i, j] + 1.0, name="repeated")
    found = [candidates(te.create_prim_func([a, b, last]), cpu_target(1)) for last in (kept, transposed, repeated)]
    assert found[0] and found[1:] == [[], []]
