"""What README and docs/how-to.md show runs as it stands: Python blocks in one namespace a page, commands through the CLI."""

from __future__ import annotations

import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from neaptide.cli import main
from neaptide.testing import brute_force_peak

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("NEAPTIDE_SHARED") or ROOT.parent / "shared")


class Detector(nn.Module):
    """Counts what it sees, so its output size depends on data."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten()[image.flatten() > 0.5]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder with the files that the pages mention."""
    monkeypatch.setenv("NEAPTIDE_COSTS", str(tmp_path / "costs.sqlite"))
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    x = torch.randn(2, 3, 8, 8)
    model(x)
    torch.onnx.export(model, (x,), "model.onnx", dynamo=True, verbose=False)
    net = "from torch import nn\ndef make_model():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))\n"
    for name in ("my_model.py", "train.py"):
        Path(name).write_text(net)
    Path("lifetimes.csv").write_text("id,lower,upper,size\na,0,2,64\nb,1,3,64\n")
    if SHARED.is_dir():
        Path("nasbench201.npz").symlink_to(SHARED / "data" / "nasbench201.npz")
    return {"model": model, "x": x, "detector": Detector(), "image": torch.rand(4, 4), "my_peak": brute_force_peak}


@pytest.mark.parametrize("page", ["README.md", "docs/how-to.md"])
def test_python_blocks_run(page, desk):
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), desk)


@pytest.mark.parametrize("page", ["README.md", "docs/how-to.md"])
def test_commands_run(page, desk, capsys):
    lines = [line.split("#")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    firmware = find_spec("unicorn") and find_spec("ziglang") and find_spec("tvm")
    searched = firmware and find_spec("optuna") and Path("nasbench201.npz").exists()
    absent = ["timm:", *([] if firmware else ["neaptide measure"]), *([] if searched else ["neaptide search"])]
    commands = [line for line in lines if line.startswith("neaptide ") and not any(a in line for a in absent)]
    assert commands
    for command in commands:
        assert main(shlex.split(command)[1:]) in (0, 3), f"{command}: {capsys.readouterr().err}"
