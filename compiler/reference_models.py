"""The built-in reference models: small registry of well-known networks, buildable from a name alone.

Each is written in plain `torch.nn`, with the wiring and the parameter counts of its publication, so that every example,
benchmark and test can name a network without installing a model zoo. torch is imported when a model is built, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .errors import SourceError


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """One network by name.

    `factory`: `module:function` inside this package, called with `options`. `inputs`: one shape per positional argument
    (batch first). `vocabulary`: inputs are int64 tokens below it when positive, float32 noise when 0. `params`: number of
    parameters (batch norm statistics are buffers and not among them).
    """

    name: str
    description: str
    factory: str
    inputs: tuple[tuple[int, ...], ...]
    params: int
    options: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 0

    def module(self, **options: Any) -> Any:
        """Build the `torch.nn.Module` in evaluation mode on the current default device; `options` override the registry's."""
        module_name, function = self.factory.split(":")
        build = getattr(import_module(f".{module_name}", __package__), function)
        return build(**{**self.options, **options}).eval()

    def args(self, *, batch: int = 1, resolution: int | None = None, length: int | None = None) -> tuple[Any, ...]:
        """Example positional arguments: `batch` samples, images of `resolution` x `resolution`, sequences of `length`."""
        import torch

        out = []
        for shape in self.inputs:
            sizes = [batch, *shape[1:]]
            if resolution is not None and len(sizes) == 4:
                sizes[2:] = [resolution, resolution]
            if length is not None and len(sizes) < 4:
                sizes[1] = length
            out.append(torch.randint(self.vocabulary, sizes) if self.vocabulary else torch.randn(sizes))
        return tuple(out)


_IMAGENET = ((1, 3, 224, 224),)
_CIFAR = ((1, 3, 32, 32),)
_ALL = (
    ReferenceModel("resnet18", "ResNet-18, ImageNet (He et al. 2015)", "reference_convnets:resnet18", _IMAGENET, 11_689_512),
    ReferenceModel("resnet50", "ResNet-50 v1.5, ImageNet (He et al. 2015)", "reference_convnets:resnet50", _IMAGENET, 25_557_032),
    ReferenceModel("resnet8", "ResNet-8, CIFAR-10, MLPerf Tiny image classification", "reference_tiny:resnet8", _CIFAR, 78_186),
    ReferenceModel(
        "mobilenet_v1_025_vww",
        "MobileNetV1 0.25, 96 x 96, MLPerf Tiny visual wake words",
        "reference_tiny:mobilenet_v1_025_vww",
        ((1, 3, 96, 96),),
        216_322,
    ),
    ReferenceModel("ds_cnn", "Depthwise-separable CNN, MLPerf Tiny keyword spotting", "reference_tiny:ds_cnn", ((1, 1, 49, 10),), 23_756),
    ReferenceModel("autoencoder", "Dense autoencoder, MLPerf Tiny anomaly detection", "reference_tiny:autoencoder", ((1, 640),), 267_928),
    ReferenceModel(
        "mobilenet_v2", "MobileNetV2 (Sandler et al. 2018); option width", "reference_convnets:mobilenet_v2", _IMAGENET, 3_504_872
    ),
    ReferenceModel(
        "mobilenet_v2_035_64",
        "MobileNetV2 0.35 at 64 x 64, ten classes",
        "reference_convnets:mobilenet_v2",
        ((1, 3, 64, 64),),
        408_938,
        {"width": 0.35, "classes": 10},
    ),
    ReferenceModel(
        "mobilenet_v3_small",
        "MobileNetV3-Small with squeeze-and-excitation (Howard et al. 2019)",
        "reference_convnets:mobilenet_v3_small",
        _IMAGENET,
        2_542_856,
    ),
    ReferenceModel("densenet121", "DenseNet-121, ImageNet (Huang et al. 2016)", "reference_convnets:densenet121", _IMAGENET, 7_978_856),
    ReferenceModel("googlenet", "GoogLeNet with batch norm (Szegedy et al. 2014)", "reference_convnets:googlenet", _IMAGENET, 6_624_904),
    ReferenceModel("unet", "U-Net of width 64 (Ronneberger et al. 2015)", "reference_convnets:unet", ((1, 3, 256, 256),), 31_031_745),
    ReferenceModel(
        "darts_cifar", "DARTS-V2, 20 cells of width 36, CIFAR-10 (Liu et al. 2018)", "reference_cells:darts_cifar", _CIFAR, 3_349_342
    ),
    ReferenceModel(
        "randwire", "RandWire WS(4, 0.75), small regime (Xie et al. 2019); option seed", "reference_cells:randwire", _IMAGENET, 5_516_835
    ),
    ReferenceModel("vit_tiny", "ViT-Ti/16, ImageNet (Touvron et al. 2020)", "reference_transformers:vit_tiny", _IMAGENET, 5_717_416),
    ReferenceModel("vit_b_16", "ViT-B/16, ImageNet (Dosovitskiy et al. 2020)", "reference_transformers:vit_b_16", _IMAGENET, 86_567_656),
    ReferenceModel(
        "gpt2_small",
        "GPT-2 small, 128 tokens to hidden states (Radford et al. 2019); option head",
        "reference_transformers:gpt2_small",
        ((1, 128),),
        124_439_808,
        vocabulary=50_257,
    ),
    ReferenceModel(
        "bert_tiny",
        "BERT tiny, 2 layers of width 128, with pooler (Turc et al. 2019)",
        "reference_transformers:bert_tiny",
        ((1, 128),),
        4_385_920,
        vocabulary=30_522,
    ),
    ReferenceModel("lstm", "Two LSTM layers of width 256 and a classifier", "reference_transformers:lstm", ((1, 32, 128),), 924_170),
    ReferenceModel(
        "transformer_block",
        "One pre-norm transformer block of width 256",
        "reference_transformers:transformer_block",
        ((1, 64, 256),),
        789_760,
    ),
)

REFERENCE_MODELS: dict[str, ReferenceModel] = {m.name: m for m in _ALL}


def reference_model(name: str) -> tuple[Callable[..., Any], Callable[..., tuple[Any, ...]]]:
    """The pair (module factory, example-arguments factory) of the reference model `name`.

    Both take keyword options, see `ReferenceModel.module` and `ReferenceModel.args`. Raises `SourceError` with the nearest
    name when there is no such model.
    """
    if name not in REFERENCE_MODELS:
        near = difflib.get_close_matches(name, REFERENCE_MODELS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known ones: {', '.join(REFERENCE_MODELS)}."
        raise SourceError(f"no built-in reference model is named {name!r}. {hint}")
    model = REFERENCE_MODELS[name]
    return model.module, model.args
