"""More than 300 real models over torchvision, timm, transformers and diffusers, with example inputs, for benchmarks and tests.

`ZOO` maps names (`"timm:resnet18"`) to `ZooModel`s: `build()` makes the module with random weights (no network is touched),
`inputs()` its `(args, kwargs)` on the CPU. Architectures are chosen for breadth, one to three a family. transformers models take
their default configuration at full width with at most LAYERS layers a stack; diffusers ones are cut where the default is huge.
Importing this module imports no zoo; needs the environment of `make zoo`.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LAYERS = 4
LAYER_COUNTS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers",
)  # fmt: skip

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet1_0 mobilenet_v2
mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 resnet101 resnext50_32x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg16_bn vit_b_16 vit_b_32 wide_resnet50_2
deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large mc3_18 r2plus1d_18 r3d_18 s3d mvit_v1_b mvit_v2_s
swin3d_t fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn fcos_resnet50_fpn retinanet_resnet50_fpn
ssdlite320_mobilenet_v3_large ssd300_vgg16 keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn raft_small raft_large
"""

TIMM = """
beit_base_patch16_224 halonet26t botnet26t_256 mobileone_s0 gernet_s repvgg_a0 cait_xxs24_224 coat_small convit_small convmixer_768_32
convnext_small convnextv2_small cpubone_s0 crossvit_small_240 csatv2 cs3darknet_s darknet17 cspnext_s davit_small deit_small_patch16_224
deit3_small_patch16_224 densenet264d dla34 dpn68 edgenext_x_small efficientformer_l1 efficientformerv2_s0 tinynet_e mnasnet_small mixnet_s
efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_small_patch14_224 vit_small_patch16_dinov3 fasternet_s fastvit_s12
focalnet_tiny_srf gcvit_small ghostnet_050 ghostnetv2_100 hardcorenas_a hgnet_small hgnetv2_b0 hiera_small_224 hieradet_small
hrnet_w18_small iformer_s inception_next_small inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128 lowformer_b0
mambaout_small maxvit_small_tf_224 maxxvit_rmlp_small_rw_256 coatnet_nano_cc_224 caformer_s18 convformer_s18 gmlp_s16_224 mixer_s16_224
tf_mobilenetv3_small_minimal_100 mobilenetv3_small_050 fbnetv3_b mobilenetv5_300m mobilevit_xxs mobilevitv2_050 mvitv2_small
naflexvit_so400m_patch16_siglip nasnetalarge nest_small nextvit_small nf_seresnet26 nf_resnet26 pit_s_224 pnasnet5large pvt_v2_b0
qwen3_vit_88m rdnet_small regnetx_002 regnety_002 regnetv_040 repghostnet_050 repvit_m0_9 res2net50_26w_4s res2net50d resnest26d resnet18
seresnet18 ecaresnet26t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_s
swin_s3_tiny_224 swinv2_small_window8_256 swinv2_cr_small_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11
visformer_small vit_small_patch16_18x2_224 flexivit_small vit_small_r26_s32_224 vit_relpos_small_patch16_224 samvit_base_patch16
vitamin_small_224 volo_d1_224 ese_vovnet19b_slim vovnet39a legacy_xception xception41 xcit_small_12_p16_224
"""

TRANSFORMERS = """
albert align altclip apertus arcee aimv2_vision_model bart beit bert bert-generation big_bird bigbird_pegasus biogpt bit bitnet blenderbot
blenderbot-small blip bloom camembert canine chinese_clip clip clipseg codegen conditional_detr convbert convnext convnextv2 ctrl cvt
d_fine dab-detr data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deformable_detr deimv2 deit detr diffllama dinov2
dinov2_with_registers dinov3_convnext dinov3_vit distilbert doge donut-swin dpr dpt efficientnet electra ernie esmc eurobert falcon_mamba
fastspeech2_conformer flaubert flava florence2 fnet focalnet fsmt funnel gemma2 git glm_ocr_text glpn gpt2 gpt_bigcode gpt_neo
gpt_neox_japanese granite granite_docling_text groupvit gte helium hgnet_v2 hiera hubert ibert ijepa imagegpt internvl_vision jetmoe
layoutlm layoutlmv3 led levit lfm2 lilt llama longformer longt5 m2m_100 mamba mamba2 marian mbart megatron-bert mistral mobilebert
mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 modernbert modernbert-decoder mpnet mpt mra mt5 mvp nomic_bert nystromformer olmo2
openai-gpt opt pegasus pegasus_x phi plbart poolformer prophetnet pvt pvt_v2 qwen2 qwen3 regnet rembert resnet roberta
roberta-prelayernorm roc_bert roformer rt_detr rwkv segformer sew sew-d siglip smollm3 splinter squeezebert stablelm starcoder2
swiftformer swin swin2sr swinv2 switch_transformers t5 table-transformer umt5 unispeech unispeech-sat visual_bert vit vit_mae
vit_msn vitdet wav2vec2 wav2vec2-conformer wavlm whisper xglm xlm-roberta xlnet yolos yoso
"""


@dataclass(frozen=True)
class Ids:
    """An integer tensor: values below `high`."""

    high: int
    shape: tuple[int, ...]


# Class: configuration, and inputs by parameter: a tuple is the shape of a float tensor.
SMALL_UNET: dict[str, Any] = {"sample_size": 16, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64}
TWO_BLOCKS: dict[str, Any] = {
    "block_out_channels": (64, 128), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
FOUR_WIDTHS = (32, 64, 64, 64)
STEP = Ids(10, (1,))
DIFFUSERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": ({"sample_size": 64}, {"sample": (1, 3, 64, 64), "timestep": 1}),
    "UNet2DConditionModel": (
        {"sample_size": 32, "cross_attention_dim": 768},
        {"sample": (1, 4, 32, 32), "timestep": 1, "encoder_hidden_states": (1, 77, 768)},
    ),
    "UNet3DConditionModel": (
        {**SMALL_UNET, "norm_num_groups": 32, "attention_head_dim": 32},
        {"sample": (1, 4, 4, 16, 16), "timestep": 1, "encoder_hidden_states": (1, 16, 64)},
    ),
    "UNetSpatioTemporalConditionModel": (
        {**SMALL_UNET, "num_attention_heads": (2, 4, 4, 4), "projection_class_embeddings_input_dim": 96, "addition_time_embed_dim": 32},
        {"sample": (1, 4, 8, 16, 16), "timestep": 1, "encoder_hidden_states": (1, 1, 64), "added_time_ids": (1, 3)},
    ),
    "AutoencoderKL": (TWO_BLOCKS, {"sample": (1, 3, 64, 64)}),
    "AutoencoderTiny": ({}, {"sample": (1, 3, 64, 64)}),
    "VQModel": ({"block_out_channels": (64,)}, {"sample": (1, 3, 64, 64)}),
    "AutoencoderDC": ({}, {"sample": (1, 3, 64, 64)}),
    "AsymmetricAutoencoderKL": ({}, {"sample": (1, 3, 64, 64)}),
    "AutoencoderKLTemporalDecoder": ({}, {"sample": (2, 3, 32, 32), "num_frames": 2}),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 32, "decoder_channels": 32, "decoder_input_channels": 16, "channel_multiples": [1, 2, 4, 8, 16]},
        {"sample": (1, 2, 8192)},
    ),
    "AutoencoderKLLTXVideo": (
        {"block_out_channels": FOUR_WIDTHS, "decoder_block_out_channels": FOUR_WIDTHS},
        {"sample": (1, 3, 9, 64, 64)},
    ),
    "AutoencoderKLCogVideoX": ({"block_out_channels": FOUR_WIDTHS}, {"sample": (1, 3, 9, 64, 64)}),
    "AutoencoderKLWan": ({"base_dim": 32, "num_res_blocks": 1}, {"sample": (1, 3, 5, 64, 64)}),
    "ConsistencyDecoderVAE": ({}, {"sample": (1, 3, 64, 64)}),
    "ControlNetModel": (
        {"cross_attention_dim": 768},
        {"sample": (1, 4, 32, 32), "timestep": 1, "encoder_hidden_states": (1, 77, 768), "controlnet_cond": (1, 3, 256, 256)},
    ),
    "T2IAdapter": ({}, {"x": (1, 3, 128, 128)}),
    "DiTTransformer2DModel": (
        {"num_layers": 4, "sample_size": 32},
        {"hidden_states": (1, 4, 32, 32), "timestep": STEP, "class_labels": STEP},
    ),
    "PixArtTransformer2DModel": (
        {"num_layers": 4, "sample_size": 32, "caption_channels": 64},
        {"hidden_states": (1, 4, 32, 32), "encoder_hidden_states": (1, 16, 64), "timestep": STEP},
    ),
    "SD3Transformer2DModel": (
        {"num_layers": 4, "sample_size": 32},
        {"hidden_states": (1, 16, 32, 32), "encoder_hidden_states": (1, 32, 4096), "pooled_projections": (1, 2048), "timestep": STEP},
    ),
    "FluxTransformer2DModel": (
        {"num_layers": 1, "num_single_layers": 2},
        {
            "hidden_states": (1, 64, 64), "encoder_hidden_states": (1, 32, 4096), "pooled_projections": (1, 768), "timestep": (1,),
            "img_ids": (64, 3), "txt_ids": (32, 3),
        },
    ),
    "Transformer2DModel": ({"in_channels": 64, "norm_num_groups": 32}, {"hidden_states": (1, 64, 16, 16)}),
    "PriorTransformer": (
        {"num_layers": 4},
        {"hidden_states": (1, 768), "timestep": 1, "proj_embedding": (1, 768), "encoder_hidden_states": (1, 77, 768)},
    ),
    "SanaTransformer2DModel": (
        {"num_layers": 4},
        {"hidden_states": (1, 32, 16, 16), "encoder_hidden_states": (1, 16, 2304), "timestep": STEP},
    ),
    "AuraFlowTransformer2DModel": (
        {"num_mmdit_layers": 1, "num_single_dit_layers": 2, "sample_size": 32},
        {"hidden_states": (1, 4, 32, 32), "encoder_hidden_states": (1, 16, 2048), "timestep": (1,)},
    ),
    "CogVideoXTransformer3DModel": (
        {"num_layers": 4, "sample_width": 16, "sample_height": 16, "sample_frames": 9},
        {"hidden_states": (1, 3, 16, 16, 16), "encoder_hidden_states": (1, 226, 4096), "timestep": STEP},
    ),
    "LTXVideoTransformer3DModel": (
        {"num_layers": 4},
        {
            "hidden_states": (1, 128, 128), "encoder_hidden_states": (1, 16, 4096), "timestep": STEP, "encoder_attention_mask": (1, 16),
            "num_frames": 2, "height": 8, "width": 8,
        },
    ),
    "WanTransformer3DModel": (
        {"num_layers": 2, "num_attention_heads": 12, "ffn_dim": 4096},
        {"hidden_states": (1, 16, 2, 16, 16), "timestep": STEP, "encoder_hidden_states": (1, 32, 4096)},
    ),
    "UVit2DModel": (
        {"num_hidden_layers": 4},
        {"input_ids": Ids(100, (1, 16, 16)), "encoder_hidden_states": (1, 77, 768), "pooled_text_emb": (1, 768), "micro_conds": (1, 5)},
    ),
    "Lumina2Transformer2DModel": (
        {
            "num_layers": 2, "hidden_size": 768, "num_attention_heads": 8, "num_kv_heads": 4, "axes_dim_rope": (32, 32, 32),
            "cap_feat_dim": 256,
        },
        {
            "hidden_states": (1, 16, 32, 32), "timestep": (1,), "encoder_hidden_states": (1, 16, 256),
            "encoder_attention_mask": torch.ones(1, 16, dtype=torch.bool),
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ZooModel:
    """One model: `build()` gives the module, `inputs()` its positional and keyword arguments."""

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


def _zoo() -> dict[str, ZooModel]:
    made = [
        *(ZooModel(f"torchvision:{n}", lambda n=n: _torchvision(n), lambda n=n: _torchvision_inputs(n)) for n in TORCHVISION.split()),
        *(ZooModel(f"timm:{n}", lambda n=n: _timm(n), lambda n=n: _timm_inputs(n)) for n in TIMM.split()),
        *(ZooModel(f"transformers:{n}", lambda n=n: _transformers(n), lambda n=n: _transformers_inputs(n)) for n in TRANSFORMERS.split()),
        *(ZooModel(f"diffusers:{n}", lambda n=n: _diffusers(n), lambda n=n: _diffusers_inputs(n)) for n in DIFFUSERS),
    ]
    return {m.name: m for m in made}


def _package(name: str) -> Any:
    """A zoo package, imported with its downloads off and after the torchvision shim."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    importlib.import_module("benchmarks.torchvision_shim")
    return importlib.import_module(name)


def _torchvision(name: str) -> torch.nn.Module:
    models = _package("torchvision").models
    package = models.get_model_builder(name).__module__
    backbone = {"weights_backbone": None} if "detection" in package or "segmentation" in package else {}
    return models.get_model(name, weights=None, **backbone)


def _torchvision_inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    package = _package("torchvision").models.get_model_builder(name).__module__
    if "detection" in package:
        return ([_floats(3, 320, 320)],), {}
    if "optical_flow" in package:
        return (_floats(1, 3, 128, 128), _floats(1, 3, 128, 128)), {}
    if "video" in package:
        side = 224 if name.startswith(("mvit", "swin", "s3d")) else 112
        return (_floats(1, 3, 16, side, side),), {}
    side = 299 if name.startswith("inception") else 224
    return (_floats(1, 3, side, side),), {}


def _timm(name: str) -> torch.nn.Module:
    return _package("timm").create_model(name)


def _timm_inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    known = _package("timm").get_pretrained_cfg(name)
    return (_floats(1, *(known.input_size if known else (3, 224, 224))),), {}


def _transformers_class(kind: str) -> tuple[Any, Any]:
    """Model class and configuration of a transformers model type."""
    transformers = _package("transformers")
    names = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES[kind]
    config_class = type(transformers.AutoConfig.for_model(kind))
    default = config_class()
    cut = {a: min(getattr(default, a), LAYERS) for a in LAYER_COUNTS if isinstance(getattr(default, a, None), int)}
    try:
        config = config_class(**cut)
    except Exception:  # each package has its own class for a configuration that cannot be cut this way
        config = default
    return getattr(transformers, names if isinstance(names, str) else names[0]), config


def _transformers(kind: str) -> torch.nn.Module:
    model_class, config = _transformers_class(kind)
    return model_class(config)


def _transformers_inputs(kind: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs by what the model's forward takes: 64 tokens, one image, one second of sound, or thirty seconds of features."""
    model_class, config = _transformers_class(kind)
    main = model_class.main_input_name
    takes = inspect.signature(model_class.forward).parameters
    images = main == "pixel_values" or ("pixel_values" in takes and (hasattr(config, "projection_dim") or kind == "siglip"))
    given: dict[str, Any] = {}
    if main == "input_ids" or (images and "input_ids" in takes):
        vocabulary = getattr(config.get_text_config(), "vocab_size", None) or 1000
        given["input_ids"] = _integers(min(vocabulary, 1000), 1, 64)
        if "attention_mask" in takes:
            given["attention_mask"] = torch.ones(1, 64, dtype=torch.int64)
    if images:
        seen = getattr(config, "vision_config", config)
        side = getattr(seen, "image_size", None) or 224
        given["pixel_values"] = _floats(1, getattr(seen, "num_channels", 3), *(side if isinstance(side, list | tuple) else (side, side)))
    if main == "input_values":
        given["input_values"] = _floats(1, 16_000)
    if main == "input_features":
        given["input_features"] = _floats(1, config.num_mel_bins, 2 * config.max_source_positions)
    if "decoder_input_ids" in takes and config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.ones(1, 16, dtype=torch.int64)
    return (), given


def _diffusers(name: str) -> torch.nn.Module:
    return getattr(_package("diffusers"), name)(**DIFFUSERS[name][0])


def _diffusers_inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def made(value: Any) -> Any:
        if isinstance(value, Ids):
            return _integers(value.high, *value.shape)
        return _floats(*value) if isinstance(value, tuple) else value

    return (), {parameter: made(value) for parameter, value in DIFFUSERS[name][1].items()}


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(min(3, high - 1), high, shape, generator=torch.Generator().manual_seed(0))


ZOO: dict[str, ZooModel] = _zoo()
