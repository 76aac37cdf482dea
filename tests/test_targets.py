"""Target specs: the built-in ones are true and complete, a user's own is read or refused with its line."""

from __future__ import annotations

import json
import pickle

import pytest

from neaptide.cli import main
from neaptide.compiler.errors import FormatError, SourceError
from neaptide.targets.cost import Cost, OpCost
from neaptide.targets.spec import list_targets, load_target

KIB = 1024
PARTS = {  # SRAM and flash in KiB, MHz, core: from the datasheets
    "stm32f446": (128, 512, 180, "cortex-m4f"),
    "stm32f746": (320, 1024, 216, "cortex-m7"),
    "stm32h743": (512, 2048, 480, "cortex-m7"),
    "stm32l4r5": (640, 2048, 120, "cortex-m4f"),
    "nrf52840": (256, 1024, 64, "cortex-m4f"),
    "ensemble-e7": (1024, 5632, 400, "cortex-m55"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_have_their_datasheet_memories(name):
    part = load_target(name)
    sram, flash, mhz, core = PARTS[name]
    assert (part.sram, part.flash, part.clock_hz, part.core) == (sram * KIB, flash * KIB, mhz * 10**6, core)
    assert part.kind == "mcu"
    assert part.emulator == load_target(core).emulator


def test_every_target_is_complete():
    targets = list_targets()
    assert {"cpu", "sm_80", "sm_90", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55", *PARTS} == {
        t.name for t in targets
    }
    for t in targets:
        assert t.title
        assert len(t.source) > 20
        assert t.tvm["kind"] in ("llvm", "cuda")
        if t.kind == "mcu":
            assert t.emulator is not None
            assert f"-mcpu={t.tvm['mcpu']}" in t.compilers.gcc
            assert "-target" in t.compilers.zig
        if t.kind == "gpu":
            assert t.roofline is not None
            assert t.roofline.flops > t.roofline.bandwidth
        json.dumps(t.to_dict())


def test_a_target_is_frozen():
    with pytest.raises(AttributeError):
        load_target("stm32f746").sram = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        load_target("stm32f746").tvm["mcpu"] = "other"  # type: ignore[index]


def test_a_target_and_a_cost_travel_between_processes():
    part = load_target("stm32f746")
    assert pickle.loads(pickle.dumps(part)) == part
    cost = Cost("m7", "measured", per_op=(OpCost("conv", "conv 1x2", instructions=3),), versions={"zig": "1"})
    assert pickle.loads(pickle.dumps(cost)) == cost


def test_own_file_extends_a_part(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text('extends = "stm32f746"\ntitle = "my board"\nsource = "measured"\n\n[memory]\nsram = "300 KiB"\n')
    board = load_target(path)
    assert (board.name, board.sram, board.flash, board.core) == ("board", 300 * KIB, 1024 * KIB, "cortex-m7")
    assert board.compilers == load_target("stm32f746").compilers


HEAD = 'extends = "cortex-m7"\ntitle = "t"\nsource = "s"\n'
WRONG = {
    "unknown key": (HEAD + "colour = 1\n", 4, "unknown key 'colour'"),
    "near miss": (HEAD + "\n[memory]\n# size\nsramm = 4\n", 7, "did you mean 'sram'?"),
    "zero": (HEAD + "[memory]\nsram = 0\n", 5, "above zero"),
    "negative": (HEAD + "[memory]\nflash = -4\n", 5, "above zero"),
    "unit": (HEAD + '[memory]\nflash = "4 apples"\n', 5, "wanted a number with a unit"),
    "fraction": (HEAD + '[memory]\nflash = "0.3 B"\n', 5, "whole number"),
    "boolean": (HEAD + "clock = true\n", 4, "whole number"),
    "larger than its board": (HEAD + '[memory]\nsram = "1 GiB"\n', 5, "more than"),
    "kind": (HEAD + 'kind = "fpga"\n', 4, "no kind of target"),
    "core": (HEAD.replace("m7", "m8"), 1, "did you mean"),
    "itself": (HEAD.replace("cortex-m7", "wrong.toml"), 1, "extends itself"),
    "no memory": ('kind = "mcu"\ntitle = "t"\nsource = "s"\n', 1, "needs memory.sram"),
    "no source": ('kind = "cpu"\ntitle = "t"\n', 1, "'source' is missing"),
    "address": (HEAD + "[emulator]\nram = 0xFFFFFFF0\n", 5, "address space"),
    "not a table": (HEAD + "memory = 3\n", 4, "is a table"),
    "arguments": (HEAD + '[compilers]\ngcc = "-O3"\n', 5, "list of texts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named_with_their_line(case, tmp_path):
    written, line, said = WRONG[case]
    path = tmp_path / "wrong.toml"
    path.write_text(written)
    with pytest.raises(FormatError) as caught:
        load_target(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)


def test_broken_toml_and_missing_names(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('title = "t"\nkind = \n')
    with pytest.raises(FormatError, match="line 2"):
        load_target(path)
    with pytest.raises(SourceError, match="did you mean 'stm32f746'"):
        load_target("stm32f764")
    with pytest.raises(SourceError, match="does not exist"):
        load_target(tmp_path / "none.toml")


def test_cost_goes_to_json_and_back():
    cost = Cost(
        target="stm32f746", kind="measured", name="net", instructions=120, arena=64, plan=64, fits=True, sections={".text": 10},
        per_op=(OpCost("conv", "conv2d 1x2", instructions=100, bytes=8), OpCost("add", "add 1x2", instructions=20)),
        versions={"zig": "0.17"}, reasons=("fits",),
    )  # fmt: skip
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    assert cost.slowest(1)[0].name == "conv"
    assert cost.value == 120
    with pytest.raises(FormatError):
        Cost.from_dict({"format": "neaptide.cost", "version": 99})
    with pytest.raises(ValueError, match="guessed"):
        Cost(target="cpu", kind="guessed")  # type: ignore[arg-type]


def test_command_lists_targets(capsys):
    assert main(["targets", "--json"]) == 0
    assert {t["name"] for t in json.loads(capsys.readouterr().out)} == {t.name for t in list_targets()}
    assert main(["targets"]) == 0
    assert "320 KiB" in capsys.readouterr().out
