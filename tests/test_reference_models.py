"""The built-in reference models are the published networks: parameter counts, shapes, and what a wrong name says."""

import pytest
import torch

from neaptide.compiler.errors import SourceError
from neaptide.compiler.reference_models import REFERENCE_MODELS, reference_model

# From torchvision, timm, Hugging Face hub and the DARTS repository (3.349342 MB without the auxiliary head).
PUBLISHED_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "densenet121": 7_978_856,
    "googlenet": 6_624_904,
    "darts_cifar": 3_349_342,
    "vit_tiny": 5_717_416,
    "vit_b_16": 86_567_656,
    "gpt2_small": 124_439_808,
    "bert_tiny": 4_385_920,
}
# Keras counts of mlcommons/tiny, which include the moving statistics of batch norm.
PUBLISHED_WITH_STATISTICS = {"resnet8": 78_666, "mobilenet_v1_025_vww": 221_794, "ds_cnn": 24_908, "autoencoder": 269_992}


def build_on_meta(name, **options):
    module, args = reference_model(name)
    with torch.device("meta"):
        return module(**options), args()


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_builds_and_runs_on_meta_with_the_registered_parameters(name):
    module, args = build_on_meta(name)
    assert not module.training
    assert parameters(module) == REFERENCE_MODELS[name].params
    assert all(p.is_meta for p in module.parameters())
    out = module(*args)
    assert all(o.is_meta and o.shape[0] == 1 for o in (out if isinstance(out, tuple) else (out,)))


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_equal_the_published_count(name):
    assert parameters(build_on_meta(name)[0]) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_WITH_STATISTICS)
def test_mlperf_tiny_sizes_equal_the_keras_summary(name):
    module, _ = build_on_meta(name)
    statistics = sum(b.numel() for key, b in module.named_buffers() if key.endswith(("running_mean", "running_var")))
    assert parameters(module) + statistics == PUBLISHED_WITH_STATISTICS[name]


def test_options_change_width_classes_batch_and_resolution():
    module, args = reference_model("mobilenet_v2")
    with torch.device("meta"):
        thin = module(width=0.35)
        assert parameters(thin) == 1_677_128
        assert thin(*args(batch=2, resolution=96)).shape == (2, 1000)


def test_gpt2_head_is_tied_and_gives_logits():
    module, args = reference_model("gpt2_small")
    with torch.device("meta"):
        model = module(head=True)
        assert parameters(model) == 124_439_808
        assert model(*args(length=16)).shape == (1, 16, 50_257)


def test_randwire_seed_changes_the_wiring_and_repeats():
    shapes = [[tuple(p.shape) for p in build_on_meta("randwire", seed=seed)[0].parameters()] for seed in (0, 0, 1)]
    assert shapes[0] == shapes[1] != shapes[2]


def test_tokens_stay_below_the_vocabulary():
    (tokens,) = reference_model("bert_tiny")[1](batch=3, length=9)
    assert tokens.shape == (3, 9)
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 30_522


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(SourceError, match="Did you mean 'resnet50'"):
        reference_model("resnet_50")
    with pytest.raises(SourceError, match="Known ones: resnet18"):
        reference_model("zzz")
