"""Real models whose peaks are compared with the profiler's: by name, built with random weights, small enough to run on two cores.

A name is `family:model`: `builtin:` (this package's reference models), `torchvision:`, `timm:`, `transformers:` (an architecture at a small
configuration, written as its configuration class) and `diffusers:`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

BUILTIN = (
    "resnet18 resnet50 resnet8 mobilenet_v1_025_vww ds_cnn autoencoder mobilenet_v2 mobilenet_v3_small densenet121 googlenet darts_cifar "
    "randwire vit_tiny vit_b_16 gpt2_small bert_tiny lstm transformer_block"
)
TORCHVISION = (
    "alexnet vgg11_bn squeezenet1_0 resnext50_32x4d wide_resnet50_2 densenet169 inception_v3 mobilenet_v3_large mnasnet1_0 "
    "shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny swin_t swin_v2_t vit_b_32 maxvit_t "
    "deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large r3d_18"
)
TIMM = (
    "resnetv2_50 seresnet33ts res2net50_26w_4s hrnet_w18_small dla34 ghostnet_100 mixnet_s rexnet_100 repvgg_a0 dpn68 ese_vovnet19b_dw "
    "cspresnet50 xception41 mobilenetv4_conv_small mobileone_s0 fastvit_t8 efficientformer_l1 levit_128s cait_xxs24_224 "
    "deit_tiny_patch16_224 xcit_nano_12_p16_224 pvt_v2_b0 twins_pcpvt_small crossvit_tiny_240 convit_tiny mixer_s32_224 resmlp_12_224 "
    "poolformer_s12 edgenext_xx_small mobilevit_xxs tiny_vit_5m_224 eva02_tiny_patch14_224 focalnet_tiny_srf davit_tiny coat_lite_tiny "
    "nf_resnet26 tf_efficientnetv2_b0 lcnet_050"
)
_TEXT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 1000}
_DECODER = {**_TEXT, "num_key_value_heads": 2}
_SEQ2SEQ = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 1000,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BertConfig": _TEXT,
    "DistilBertConfig": {"dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256, "vocab_size": 1000},
    "RobertaConfig": _TEXT,
    "AlbertConfig": {**_TEXT, "embedding_size": 64},
    "ElectraConfig": {**_TEXT, "embedding_size": 64},
    "DebertaV2Config": _TEXT,
    "GPT2Config": {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 1000},
    "GPTNeoXConfig": _TEXT,
    "OPTConfig": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 256,
        "word_embed_proj_dim": 128,
        "vocab_size": 1000,
    },
    "BloomConfig": {"hidden_size": 128, "n_layer": 2, "n_head": 4, "vocab_size": 1000},
    "LlamaConfig": _DECODER,
    "MistralConfig": _DECODER,
    "Qwen2Config": _DECODER,
    "GemmaConfig": {**_DECODER, "head_dim": 32},
    "PhiConfig": _DECODER,
    "MambaConfig": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 1000},
    "T5Config": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000},
    "BartConfig": _SEQ2SEQ,
    "WhisperConfig": {
        **_SEQ2SEQ,
        "max_source_positions": 64,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    },
    "ViTConfig": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "image_size": 64},
}
DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {"sample_size": 32, "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1},
    "AutoencoderKL": {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
                      "up_block_types": ("UpDecoderBlock2D",) * 2},
}  # fmt: skip
_SIDE = {"inception_v3": 299, "crossvit_tiny_240": 240, "eva02_tiny_patch14_224": 336, "swin_v2_t": 256}

Built = tuple[Any, tuple[Any, ...], dict[str, Any]]


def names() -> list[str]:
    """Every model, in a fixed order."""
    table: Mapping[str, Any] = {
        "builtin": BUILTIN.split(), "torchvision": TORCHVISION.split(), "timm": TIMM.split(),
        "transformers": TRANSFORMERS, "diffusers": DIFFUSERS,
    }  # fmt: skip
    return [f"{family}:{name}" for family, members in table.items() for name in members]


def build(name: str, *, side: int | None = None, batch: int = 1) -> Built:
    """Model, positional and keyword arguments. `side`: image size where the architecture takes any."""
    import torch

    torch.manual_seed(0)
    family, _, member = name.partition(":")
    return _FAMILIES[family](member, side, batch)


def zoo_python() -> str:
    """The interpreter that has the model zoos: $NEAPTIDE_ZOO_PYTHON, .venv-zoo if it was made, else this one."""
    zoo = ROOT / ".venv-zoo" / "bin" / "python"
    return os.environ.get("NEAPTIDE_ZOO_PYTHON") or (str(zoo) if zoo.exists() else sys.executable)


def _zoo(package: str) -> Any:
    """An optional package, importable beside a CPU build of torch."""
    from . import torchvision_shim

    torchvision_shim.install()
    return importlib.import_module(package)


def _builtin(name: str, side: int | None, batch: int) -> Built:
    from neaptide.compiler.reference_models import REFERENCE_MODELS

    reference = REFERENCE_MODELS[name]
    return (
        reference.module(),
        reference.args(batch=batch, resolution=side if reference.inputs[0][-1] == 224 and not name.startswith("vit") else None),
        {},
    )


def _torchvision(name: str, side: int | None, batch: int) -> Built:
    import torch

    torchvision = _zoo("torchvision")

    options = {"weights_backbone": None} if name.startswith(("deeplab", "lraspp")) else {}
    options |= {"init_weights": False} if name == "inception_v3" else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    if name == "r3d_18":
        return model, (torch.randn(batch, 3, 8, 64, 64),), {}
    return model, (torch.randn(batch, 3, *[_SIDE.get(name, _fixed(name, side))] * 2),), {}


def _timm(name: str, side: int | None, batch: int) -> Built:
    import torch

    timm = _zoo("timm")
    model = timm.create_model(name, pretrained=False)
    size = model.pretrained_cfg.get("input_size", (3, 224, 224))
    if side is not None and not model.pretrained_cfg.get("fixed_input_size", False):
        size = (size[0], side, side)
    return model, (torch.randn(batch, *size),), {}


def _fixed(name: str, side: int | None) -> int:
    """Attention over absolute positions or windows holds a model to its image size."""
    return 224 if side is None or name.startswith(("vit", "swin", "maxvit")) else side


def _transformers(name: str, side: int | None, batch: int) -> Built:
    import torch

    transformers = _zoo("transformers")
    config = getattr(transformers, name)(**TRANSFORMERS[name])
    model = _auto_class(transformers, name).from_config(config)
    if name == "ViTConfig":
        return model, (torch.randn(batch, 3, 64, 64),), {}
    if name == "WhisperConfig":
        return model, (), {"input_features": torch.randn(batch, 80, 128), "decoder_input_ids": torch.randint(1000, (batch, 12))}
    tokens = torch.randint(2, 1000, (batch, 48))
    kwargs = {"input_ids": tokens}
    if name in ("T5Config", "BartConfig"):
        kwargs["decoder_input_ids"] = tokens[:, :24].clone()
    return model, (), kwargs


def _auto_class(transformers: Any, name: str) -> Any:
    causal = (
        "GPT2Config",
        "GPTNeoXConfig",
        "OPTConfig",
        "BloomConfig",
        "LlamaConfig",
        "MistralConfig",
        "Qwen2Config",
        "GemmaConfig",
        "PhiConfig",
        "MambaConfig",
    )
    return transformers.AutoModelForCausalLM if name in causal else transformers.AutoModel


def _diffusers(name: str, side: int | None, batch: int) -> Built:
    import torch

    diffusers = _zoo("diffusers")
    model = getattr(diffusers, name)(**DIFFUSERS[name])
    images = torch.randn(batch, 3, 32, 32)
    return (model, (images, 10), {}) if name == "UNet2DModel" else (model, (images,), {})


_FAMILIES: dict[str, Callable[[str, int | None, int], Built]] = {
    "builtin": _builtin, "torchvision": _torchvision, "timm": _timm, "transformers": _transformers, "diffusers": _diffusers,
}  # fmt: skip
