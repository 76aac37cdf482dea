"""No op of unknown work in real models, and the reference networks run the ops of their torchvision originals."""

from importlib.util import find_spec

import pytest
import torch

from neaptide.compiler.count import count
from neaptide.compiler.reference_models import reference_model
from neaptide.compiler.trace import trace
from neaptide.passes.liveness import eager_liveness

pytestmark = pytest.mark.zoo

TIMM = """
beit_base_patch16_224 cait_xxs24_224 coatnet_nano_rw_224 convnext_atto crossvit_tiny_240 davit_tiny dm_nfnet_f0
eca_nfnet_l0 edgenext_xx_small efficientnet_b0 focalnet_tiny_srf halonet26t hiera_tiny_224 inception_v3
lambda_resnet26t levit_128s mambaout_femto maxvit_nano_rw_256 mixer_s16_224 mobilenetv3_small_100 mobilevit_xxs
poolformer_s12 pvt_v2_b0 sequencer2d_s swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tnt_s_legacy_patch16_224
vit_tiny_patch16_224 volo_d1_224 xcit_nano_12_p16_224
"""
TORCHVISION = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet")


@pytest.fixture(scope="module", autouse=True)
def shim():
    """torchvision's wheel imports beside CPU torch only behind the benchmarks' shim."""
    if not find_spec("timm"):
        pytest.skip("the model zoo is not installed: `make zoo` makes an environment that has it")
    return pytest.importorskip("benchmarks.torchvision_shim", reason="run as `python -m pytest`, from the repository root")


@pytest.mark.parametrize("name", TIMM.split())
def test_timm_models_hold_no_op_of_unknown_work(name):
    import timm  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        model = timm.create_model(name)
    counts = count(trace(model, torch.randn(1, *model.pretrained_cfg["input_size"])))
    assert counts.unknown == {}
    assert counts.macs > 0


@pytest.mark.parametrize("name", TORCHVISION)
def test_reference_networks_run_as_their_torchvision_originals(name):
    import torchvision  # pyright: ignore[reportMissingImports]

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        original, ours = getattr(torchvision.models, name)(weights=None, **options), reference_model(name)[0]()
    x = torch.randn(1, 3, 224, 224)
    left, right = trace(original.eval(), x), trace(ours, x)
    assert [n.op for n in left.nodes] == [n.op for n in right.nodes]
    assert [[left.tensors[t].shape for t in n.outputs] for n in left.nodes] == [
        [right.tensors[t].shape for t in n.outputs] for n in right.nodes
    ]
    assert eager_liveness(left).peak == eager_liveness(right).peak
