"""What makes a network fit a microcontroller, what is said when nothing does, and operators that are kept or come from LLVM."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from neaptide.compiler.errors import BudgetError, NeaptideError
from neaptide.targets.file_cache import FileCache

NEEDED = ("tvm", "ziglang", "unicorn", "elftools")
absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
firmware = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: pip install 'neaptide[mcu]'")


class Residual(nn.Module):
    """A residual block whose sum is all that lives beside its summands, and a head."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.body(x)).relu()
        return self.head(x.mean((2, 3)))


class Itself(nn.Module):
    """A sum with what the convolution still reads: nothing may lie over it."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return y + self.conv(y)


def with_memory(tmp_path, sram: int) -> str:
    path = tmp_path / f"part{sram}.toml"
    path.write_text(f'extends = "cortex-m4f"\ntitle = "a part"\nsource = "a test"\n[memory]\nsram = {sram}\nflash = "512 KiB"\n')
    return str(path)


@firmware
def test_results_in_place_save_arena_and_change_nothing_else(tmp_path):
    from neaptide.targets.mcu.firmware import STACK, STATIC
    from neaptide.targets.mcu.measure import measure_network
    from neaptide.targets.mcu.network import prepare

    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(1, 3, 16, 16)
    map_bytes = 8 * 16 * 16 * 4
    apart = prepare(model, (x,), inplace=False)
    together = prepare(model, (x,))
    assert apart.plan.arena == 3 * map_bytes and together.plan.arena == 2 * map_bytes == apart.plan.arena - together.found.saved
    costs = [measure_network(network, target="cortex-m4f") for network in (apart, together)]
    assert [cost.arena for cost in costs] == [cost.plan for cost in costs] == [apart.plan.arena, together.plan.arena]
    counts = [[op.instructions or 0 for op in cost.per_op] for cost in costs]
    assert all(abs(a - b) <= 4 for a, b in zip(*counts, strict=True))  # the calls load other addresses
    assert costs[0].max_error == costs[1].max_error
    assert costs[1].max_error is not None and costs[1].max_error < 1e-5
    assert costs[1].reasons[1] == f"results in place save {map_bytes:,} B of arena"

    between = with_memory(tmp_path, together.plan.arena + STACK + STATIC)
    with pytest.raises(
        BudgetError, match=rf"{map_bytes:,} B have to go.*\(inplace=True\) give an arena of {2 * map_bytes:,} B, which fits"
    ):
        measure_network(apart, target=between)
    assert measure_network(together, target=between).fits
    below = with_memory(tmp_path, together.plan.arena + STACK)
    found = rf"64 B have to go.*are in use and save {map_bytes:,} B. No order of these operators needs less than {2 * map_bytes:,} B"
    with pytest.raises(BudgetError, match=found):
        measure_network(together, target=below)
    with pytest.raises(BudgetError, match="still 64 B too many"):
        measure_network(apart, target=below)


@firmware
def test_an_operand_that_is_still_read_is_left_alone():
    from neaptide.targets.mcu.measure import measure_mcu
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax
    from neaptide.targets.tvm.overwriting import overwritable
    from neaptide.targets.tvm.schedules import scheduled

    torch.manual_seed(0)
    cost = measure_mcu(Itself().eval(), (torch.randn(1, 3, 8, 8),), target="cortex-m4f")
    assert cost.max_error is not None and cost.max_error < 1e-5 and len(cost.reasons) == 1
    assert cost.arena == cost.plan == 2 * 4 * 8 * 8 * 4

    def over(model: nn.Module) -> set[tuple[int, ...]]:
        program = fused_program(to_relax(model.eval(), (torch.randn(1, 4, 6, 6),)))
        return {overwritable(scheduled(func)) for func in program.kernels.values()}

    assert over(nn.Softmax(1)) == {()} and over(nn.MaxPool2d(3, 1, 1)) == {()} and over(nn.Conv2d(4, 4, 1)) == {()}
    assert over(nn.Hardswish()) == {(0,)}


@firmware
def test_what_does_not_fit_cannot_be_linked(tmp_path, monkeypatch):
    from neaptide.targets.mcu import measure

    monkeypatch.setattr(measure, "check_fit", lambda *_, **__: None)
    with pytest.raises(BudgetError, match=r"SRAM overflowed by at least [\d,]+ B in linking"):
        measure.measure_mcu(Residual().eval(), (torch.randn(1, 3, 16, 16),), target=with_memory(tmp_path, 16 << 10))


@firmware
def test_flash_and_what_only_the_emulator_lacks():
    from neaptide.targets.mcu.firmware import EmulationError
    from neaptide.targets.mcu.measure import measure_mcu

    with pytest.raises(BudgetError, match=r"Largest: 16,000,000 B of .*matmul; 15,475,712 B have to go, and no rewrite"):
        measure_mcu(nn.Linear(2000, 2000, bias=False), (torch.randn(1, 2000),), target="stm32f446")
    with pytest.raises(EmulationError, match=r"fits the flash of ensemble-e7 \(5,767,168 B\) but cannot be emulated: weights 2,800,000 B"):
        measure_mcu(nn.Linear(1000, 700, bias=False), (torch.randn(1, 1000),), target="ensemble-e7")
    with pytest.raises(EmulationError, match=r"cannot be emulated: code and weights take at least [\d,]+ B too many"):
        measure_mcu(nn.Linear(256, 2047, bias=False), (torch.randn(1, 256),), target="ensemble-e7")


@firmware
@pytest.mark.parametrize("target", ["cortex-m3", "cortex-m33"])
def test_objects_from_llvm(target):
    from neaptide.targets.measure import measure

    torch.manual_seed(0)
    model, x = nn.Sequential(Residual(), nn.GELU(), nn.Softmax(-1)).eval(), torch.randn(1, 3, 9, 7)
    c, llvm = (measure(model, (x,), target=target, codegen=codegen) for codegen in ("c", "llvm"))
    assert "codegen" not in c.versions and llvm.versions["codegen"].startswith("llvm ")
    assert llvm.max_error is not None and llvm.max_error < 1e-5 and llvm.arena == llvm.plan == c.plan
    assert llvm.instructions is not None and c.instructions is not None and 0.5 < llvm.instructions / c.instructions < 2
    with pytest.raises(NeaptideError, match="measured only"):
        measure(model, (x,), target=target, codegen="llvm", predict=True)


@firmware
def test_operators_are_lowered_and_compiled_once(tmp_path, monkeypatch):
    from neaptide.targets.mcu import toolchain
    from neaptide.targets.mcu.measure import measure_mcu
    from neaptide.targets.tvm import lower

    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    first = measure_mcu(Residual().eval(), (x,), target="cortex-m7")
    commands = []
    run = toolchain._run
    monkeypatch.setattr(toolchain, "_run", lambda command, *rest: (commands.append(command), run(command, *rest)))
    monkeypatch.setattr(lower, "_lower_one", lambda *_: pytest.fail("an operator was lowered again"))
    again = measure_mcu(Residual().eval(), (x,), target="cortex-m7")
    assert again.per_op == first.per_op and again.sections == first.sections
    assert len(commands) == 1 and "-c" not in commands[0]
    for path in (tmp_path / "operators").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.undo()
    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path))
    assert measure_mcu(Residual().eval(), (x,), target="cortex-m7").per_op == first.per_op


def test_file_cache(tmp_path):
    cache = FileCache(tmp_path / "cache")
    assert cache.get("a") is None
    cache.put("a", b"one")
    cache.put("b", b"")
    assert (cache.get("a"), cache.get("b")) == (b"one", b"")
    cache.put("a", b"two")
    assert FileCache(tmp_path / "cache").get("a") == b"two"
    (file,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.read_bytes().endswith(b"two")]
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.get("a") is None
    (tmp_path / "a file").write_text("")
    blocked = FileCache(tmp_path / "a file")
    blocked.put("a", b"one")
    assert blocked.get("a") is None
