"""Firmware end to end: two small networks from torch to an emulated microcontroller, and what keeps the numbers honest."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from neaptide.compiler.errors import BudgetError, NeaptideError, SourceError
from neaptide.targets.database import CostDatabase

NEEDED = ("tvm", "ziglang", "unicorn", "elftools")
absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: pip install 'neaptide[mcu]'")


class Skip(nn.Module):
    """Two convolutions with BatchNorm, a residual add, a reshape and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.body(x))


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return with_statistics(Skip()), torch.randn(1, 3, 16, 16)


def with_statistics(model: nn.Module) -> nn.Module:
    """`model` in inference mode, with statistics in its BatchNorms that change something."""
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_outputs_arena_and_counts():
    from neaptide.targets.mcu.measure import measure_mcu

    model, x = network()
    first = measure_mcu(model, (x,), target="cortex-m4f")
    assert first.kind == "measured"
    assert first.max_error is not None and first.max_error < 1e-5
    assert first.arena == first.plan and first.arena and first.arena >= 3 * 16 * 16 * 4
    assert first.stack is not None and 0 < first.stack < 4096
    assert first.instructions == sum(op.instructions or 0 for op in first.per_op)
    macs = 8 * 27 * 64 + 8 * 9 * 64 + 320
    assert first.instructions is not None and macs < first.instructions < 40 * macs
    assert first.sections["weights"] >= 4 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
    again = measure_mcu(model, (x,), target="cortex-m4f")
    assert again.per_op == first.per_op


def test_core_without_fpu_needs_more_instructions():
    from neaptide.targets.mcu.measure import measure_mcu

    model, x = network()
    m3, m7 = (measure_mcu(model, (x,), target=core) for core in ("cortex-m3", "cortex-m7"))
    assert m3.max_error is not None and m3.max_error < 1e-5
    assert m7.max_error is not None and m7.max_error < 1e-5
    assert m3.instructions is not None and m7.instructions is not None and m3.instructions > 3 * m7.instructions


def test_what_does_not_fit_says_where():
    from neaptide.targets.mcu.measure import measure_mcu

    model = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU())
    with pytest.raises(BudgetError, match=r"does not fit stm32f446: arena 1,\d+,\d+ B.*Peak at .*conv2d"):
        measure_mcu(model, (torch.randn(1, 3, 100, 100),), target="stm32f446")
    with pytest.raises(BudgetError, match=r"weights 16,000,000 B, flash 524,288 B.*fits no built-in part"):
        measure_mcu(nn.Linear(2000, 2000, bias=False), (torch.randn(1, 2000),), target="stm32f446")
    with pytest.raises(BudgetError, match=r"a part that it fits: .*stm32h743"):
        measure_mcu(nn.Linear(400, 400, bias=False), (torch.randn(1, 400),), target="stm32f446")
    with pytest.raises(SourceError, match="is a cpu"):
        measure_mcu(model, (torch.randn(1, 3, 8, 8),), target="cpu")


class Twice(nn.Module):
    """A convolution that BatchNorm and a sum both read."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_batch_norm_folds_where_nothing_else_reads():
    from neaptide.targets.tvm.importer import fold_exported

    model, x = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program = torch.export.export(model, (x,))
    assert fold_exported(program) == 2
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert fold_exported(torch.export.export(Twice().eval(), (x,))) == 0

    dense = with_statistics(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5)))
    rows = torch.randn(3, 6)
    program = torch.export.export(dense, (rows,))
    assert fold_exported(program) == 2
    torch.testing.assert_close(program.module()(rows), dense(rows), rtol=1e-5, atol=1e-6)
    middle = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(4)).eval()  # BatchNorm over what the linear layer does not mix
    assert fold_exported(torch.export.export(middle, (torch.randn(3, 4, 6),))) == 0


class Overwriting(nn.Module):
    """Ops in place, with and without an older name that is still read."""

    def __init__(self, stale: bool):
        super().__init__()
        self.stale = stale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        flat = y.flatten(1)
        y.relu_()
        y += 1
        return y.sum((2, 3)) + (flat[:, :3] if self.stale else 0)


def test_trace_and_export_give_the_same_operators():
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import _export, _from_exported
    from neaptide.targets.tvm.lower import signature
    from neaptide.targets.tvm.traced import Untranslated, traced_relax

    def operators(mod):
        program = fused_program(mod)
        return sorted(signature(node.op, program.kernels[node.op]) for node in program.graph.nodes if node.op in program.kernels)

    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.Hardtanh(inplace=True))
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 8, bias=False), nn.BatchNorm1d(8), nn.LayerNorm(8))
    for model in (network()[0], Twice(), with_statistics(transposed), with_statistics(dense), Overwriting(stale=False)):
        x = torch.randn(1, 3, 16, 16)
        assert operators(traced_relax(model.eval(), (x,), None)) == operators(_from_exported(_export(model, (x,), None)))
    with pytest.raises(Untranslated, match="another name"):
        traced_relax(Overwriting(stale=True), (torch.randn(1, 3, 4, 4),), None)


def test_a_difference_is_of_the_largest_value():
    from neaptide.targets.verdict import difference

    assert difference(np.array([1.0, -4.0]), np.array([1.0, -4.2])) == pytest.approx(0.2 / 4.2)
    assert difference(np.array([np.nan]), np.array([1.0])) == difference(np.array([1.0]), np.array([np.nan])) == float("inf")
    assert difference(np.array([np.nan, np.inf, 2.0]), np.array([np.nan, np.inf, 2.0])) == 0.0


def test_onnx_and_exported_files_through_the_command_line(tmp_path, capsys):
    from neaptide.cli import main

    model, x = network()
    torch.export.save(torch.export.export(model, (x,)), str(tmp_path / "net.pt2"))
    torch.onnx.export(model, (x,), str(tmp_path / "net.onnx"), dynamo=True, external_data=False, verbose=False)
    capsys.readouterr()
    found = []
    for name in ("net.pt2", "net.onnx"):
        database = str(tmp_path / "costs.sqlite")
        assert main(["measure", str(tmp_path / name), "--target", "stm32f746", "--json", "--database", database]) == 0
        cost = json.loads(capsys.readouterr().out)
        assert cost["target"] == "stm32f746" and cost["fits"] and cost["kind"] == "measured" and cost["max_error"] < 1e-5
        assert cost["arena"] == cost["plan"]
        found.append(cost["instructions"])
    assert found[1] == pytest.approx(found[0], rel=0.15)  # ReLU6 comes as a maximum and a minimum
    with CostDatabase(tmp_path / "costs.sqlite") as costs:
        ((target, toolchain, operators, networks),) = costs.counts()
    assert target == "stm32f746" and "ziglang" in toolchain and operators >= 4 and networks == 1
    assert main(["measure", str(tmp_path / "net.pt2"), "--target", "stm32f747"]) == 2
    assert main(["measure", str(tmp_path / "no.pt2"), "--target", "stm32f746"]) == 2


class Shapes(nn.Module):
    """One input through layers whose tiles end at edges: odd sizes, strides, dilations, groups, pools, no bias, no activation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(6, 7, 3, 2, 1),
                nn.Conv2d(6, 6, 3, 1, 1, groups=6),
                nn.Conv2d(6, 6, 5, 2, 2, groups=6, bias=False),
                nn.Conv2d(6, 6, 3, 1, 2, dilation=2, groups=6),
                nn.Conv2d(6, 8, 1, 2),
                nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU()),
                nn.Conv2d(6, 4, (5, 1), 1, (4, 0), groups=2),
                nn.Conv2d(6, 12, 3, 1, 1, groups=6),
                nn.MaxPool2d(3, 2, 1),
                nn.AvgPool2d(3, 1, 1, count_include_pad=False),
                nn.Linear(9, 5),
                nn.Sequential(nn.Linear(9, 4), nn.GELU(), nn.Softmax(-1)),
                nn.Sequential(nn.LayerNorm(9), nn.Tanh()),
            ]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer in self.layers]


@pytest.mark.parametrize("compiler", ["zig", "gcc"])
def test_every_output_of_awkward_shapes(compiler):
    from neaptide.targets.mcu.measure import measure_mcu
    from neaptide.targets.mcu.toolchain import compilers

    if compiler not in compilers():
        pytest.skip(f"{compiler} is not installed")
    torch.manual_seed(1)
    cost = measure_mcu(Shapes().eval(), (torch.randn(1, 6, 11, 9),), target="cortex-m33", compiler=compiler)
    assert cost.max_error is not None and cost.max_error < 2e-6
    assert cost.arena == cost.plan


def test_tiles_divide_and_stay_in_registers():
    from neaptide.targets.tvm.schedules import REGISTERS, choose_tile

    for channels in (1, 3, 8, 48, 7):
        for width, rows in ((1, 1), (5, 24), (4, 4), (32, 32), (7, 1), (2, 2)):
            tile = choose_tile(channels, width, rows=rows)
            c, p = tile.channels, tile.points
            assert channels % c == 0 and (width * rows) % p == 0 and (width % p == 0 or p % width == 0)
            assert c * p + c + p <= REGISTERS
    assert choose_tile(48, 32, rows=32) == choose_tile(16, 16, rows=16)
    assert choose_tile(8, 16, window=9, depthwise=True).channels == 1


@pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed")
def test_qemu_counts_what_unicorn_counts():
    from neaptide.targets.mcu.measure import measure_mcu

    model, x = network()
    unicorn, qemu = (measure_mcu(model, (x,), target="cortex-m4f", emulator=emulator) for emulator in ("unicorn", "qemu"))
    assert unicorn.instructions is not None and qemu.instructions is not None
    ticks = len(unicorn.per_op) * 40
    assert abs(unicorn.instructions - qemu.instructions) <= ticks
    assert qemu.stack == unicorn.stack and qemu.max_error == unicorn.max_error
    both = measure_mcu(model, (x,), target="cortex-m4f", emulator="both")
    assert both.per_op == unicorn.per_op and both.reasons[-1].startswith(f"{qemu.versions['emulator']} counts {qemu.instructions:,}")
    with pytest.raises(NeaptideError, match="no model of cortex-m55"):
        measure_mcu(model, (x,), target="cortex-m55", emulator="both")
    m55 = measure_mcu(model, (x,), target="cortex-m55")
    assert m55.max_error is not None and m55.max_error < 1e-5
    assert m55.versions["emulator"].startswith("qemu") and m55.cycles == 2 * (m55.instructions or 0)
    objects = measure_mcu(model, (x,), target="cortex-m55", codegen="llvm")
    assert objects.max_error is not None and objects.max_error < 1e-5
