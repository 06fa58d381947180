"""The networks of benchmarks/architectures.py: of torchvision, timm and transformers, one or two of each family.

As their libraries build them, with random weights, and small where the library allows: images of 32 to 96 pixels, and
of the transformers two layers of width 32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ACCURATE = 1e-9  # relative to max(1, |y|): sums of float64 in another order are apart by 1e-13
IN_FLOAT32 = 1e-4  # of networks that compute some of it in float32 (norms, rotations, positions)
WORDS, TOKENS = 99, 12


@dataclass(frozen=True)
class Network:
    """One network: how to build it and what it takes.

    Attributes:
        name: ``source/model``.
        build: makes it, with random weights.
        inputs: batch size -> random inputs in float64 or token numbers, as a tensor or a dict of arguments.
        accurate: largest difference, relative to max(1, |y|), that counts as rounding.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    accurate: float = ACCURATE


def every() -> Iterator[Network]:
    """All networks of the libraries that are installed."""
    if importlib.util.find_spec("torchvision") is not None:
        for name, (size, options) in TORCHVISION.items():
            yield Network(f"torchvision/{name}", partial(_torchvision, name, options), partial(images, size))
    if importlib.util.find_spec("timm") is not None:
        for name, (size, options) in TIMM.items():
            yield Network(f"timm/{name}", partial(_timm, name, options), partial(images, size))
    if importlib.util.find_spec("transformers") is not None:
        for name, (model, config, inputs) in TRANSFORMERS.items():
            accurate = IN_FLOAT32 if name in COMPUTE_IN_FLOAT32 else ACCURATE
            yield Network(f"transformers/{name}", partial(_transformers, model, config), inputs, accurate)


@cache
def torchvision() -> ModuleType:
    """The library, which does not import beside the CPU build of torch unless two of its operators are defined.

    They are those that find boxes; no network here calls them. The library object is kept, as they go with it.
    """
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.operators_of_boxes = library
    return torchvision


def _torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    models = torchvision().models
    for module in (models, models.segmentation, models.video):
        if hasattr(module, name):
            return getattr(module, name)(**{"num_classes": 10, **options})
    raise AttributeError(f"torchvision has no {name}")


def _timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    torchvision()  # timm imports it
    import timm

    return timm.create_model(name, **{"num_classes": 10, **options})


def _transformers(model: str, config: Mapping[str, Any]) -> nn.Module:
    torchvision()  # transformers imports it if it is there
    import transformers

    kind = getattr(transformers, model)
    return kind(kind.config_class(**config))


def images(size: int | tuple[int, ...], count: int) -> Tensor:
    """Random images (N, 3, size, size), or tensors (N, *size)."""
    shape = (3, size, size) if isinstance(size, int) else size
    return torch.randn(count, *shape, dtype=torch.float64)


def _text(count: int) -> dict[str, Tensor]:
    ids = torch.randint(5, WORDS, (count, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _words(count: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, WORDS, (count, TOKENS))}


def _pixels(size: int, count: int) -> dict[str, Tensor]:
    return {"pixel_values": images(size, count)}


def _sound(count: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(count, 1600, dtype=torch.float64)}


def _both(encoder: Callable[[int], dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """What an encoder and a decoder read."""
    return {**encoder(count), "decoder_input_ids": torch.randint(5, WORDS, (count, TOKENS // 2))}


SEGMENTATION = {"weights_backbone": None, "aux_loss": False}
TORCHVISION: dict[str, tuple[int | tuple[int, ...], dict[str, Any]]] = {
    "resnet18": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "mnasnet0_5": (32, {}),
    "squeezenet1_0": (48, {}),
    "squeezenet1_1": (48, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "regnet_x_400mf": (32, {}),
    "regnet_y_400mf": (32, {}),
    "googlenet": (64, {"aux_logits": False, "init_weights": False}),
    "VisionTransformer": (
        32,
        {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64},
    ),
    "SwinTransformer": (
        32,
        {
            "patch_size": [2, 2],
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": [4, 4],
        },
    ),
    "mobilenet_v3_large": (32, {}),
    "shufflenet_v2_x1_0": (32, {}),
    "lraspp_mobilenet_v3_large": (64, {"weights_backbone": None}),
    "resnet34": (32, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "wide_resnet50_2": (32, {}),
    "inception_v3": (80, {"aux_logits": False, "init_weights": False}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "convnext_tiny": (32, {}),
    "swin_t": (32, {}),
    "swin_v2_t": (32, {}),
    "r3d_18": ((3, 4, 32, 32), {}),
    "mc3_18": ((3, 4, 32, 32), {}),
    "r2plus1d_18": ((3, 4, 32, 32), {}),
    "fcn_resnet50": (48, SEGMENTATION),
    "deeplabv3_mobilenet_v3_large": (64, SEGMENTATION),
    "deeplabv3_resnet50": (48, SEGMENTATION),
    "resnet101": (32, {}),
    "efficientnet_v2_s": (32, {}),
    "alexnet": (64, {}),
    "convnext_small": (32, {}),
    "efficientnet_v2_m": (32, {}),
    "vgg11": (32, {}),
}

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    # the library's own small ones
    "test_resnet": (32, {}),
    "test_vit": (160, {}),
    "test_vit2": (160, {}),
    "test_vit4": (160, {}),
    "test_efficientnet": (64, {}),
    "test_efficientnet_gn": (64, {}),
    "test_efficientnet_ln": (64, {}),
    "test_efficientnet_evos": (64, {}),
    "test_byobnet": (64, {}),
    "test_convnext": (64, {}),
    "test_convnext2": (64, {}),
    "test_convnext3": (64, {}),
    "test_nfnet": (64, {}),
    "test_mambaout": (64, {}),
    "test_vit_relpos": (160, {}),
    # residual networks
    "resnet10t": (32, {}),
    "resnet26": (32, {}),
    "resnet26t": (32, {}),
    "resnet50_gn": (32, {"layers": (1, 1, 1, 1)}),
    "resnext26ts": (32, {}),
    "seresnet50": (32, {"layers": (1, 1, 1, 1)}),
    "ecaresnet26t": (32, {}),
    "ecaresnetlight": (32, {}),
    "resnetblur18": (32, {}),
    "resnetaa50": (32, {"layers": (1, 1, 1, 1)}),
    "resnetrs50": (32, {"layers": (1, 1, 1, 1)}),
    "skresnet18": (32, {}),
    "resnest14d": (64, {}),
    "res2net50_14w_8s": (32, {"layers": (1, 1, 1, 1)}),
    "res2next50": (32, {"layers": (1, 1, 1, 1)}),
    "legacy_seresnet18": (32, {}),
    "resnetv2_50": (32, {"layers": (1, 1, 1, 1)}),
    "resnetv2_50d_evos": (32, {"layers": (1, 1, 1, 1)}),
    "nf_regnet_b0": (32, {}),
    "nfnet_f0": (32, {}),
    "eca_nfnet_l0": (32, {}),
    "nf_resnet26": (32, {}),
    "tresnet_m": (64, {}),
    "gcresnet33ts": (32, {}),
    "regnetx_002": (32, {}),
    "regnety_002": (32, {}),
    "regnetv_040": (32, {}),
    "regnetz_b16": (32, {}),
    "gernet_s": (32, {}),
    "repvgg_a0": (32, {}),
    "mobileone_s0": (32, {}),
    "rdnet_tiny": (32, {}),
    # attention in place of convolutions
    "botnet26t_256": (64, {"img_size": 64}),
    "halonet26t": (256, {}),
    "lambda_resnet26t": (64, {"img_size": 64}),
    "lambda_resnet26rpt_256": (64, {"img_size": 64}),
    # plain, dense, wide, old
    "densenet121": (32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "densenetblur121d": (32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "dpn48b": (32, {}),
    "dla34": (32, {}),
    "dla46_c": (32, {}),
    "dla60_res2net": (32, {}),
    "hrnet_w18_small": (64, {}),
    "selecsls42b": (64, {}),
    "inception_v3": (96, {}),
    "inception_v4": (96, {}),
    "inception_resnet_v2": (96, {}),
    "inception_next_atto": (64, {}),
    "legacy_xception": (64, {}),
    "xception41": (64, {}),
    "vovnet39a": (32, {}),
    "ese_vovnet19b_slim_dw": (32, {}),
    "hgnet_tiny": (64, {}),
    "hgnetv2_b0": (64, {}),
    "cspresnet50": (64, {}),
    "cspdarknet53": (64, {}),
    "darknet17": (64, {}),
    "cs3darknet_focus_s": (64, {}),
    "cspnext_tiny": (64, {}),
    # mobile
    "mobilenetv1_100": (32, {}),
    "mobilenetv2_050": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "mobilenetv3_large_075": (32, {}),
    "mobilenetv4_conv_small_035": (64, {}),
    "mobilenetv4_hybrid_medium": (64, {}),
    "mobilenet_edgetpu_v2_xs": (64, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_es": (32, {}),
    "efficientnet_cc_b0_4e": (32, {}),
    "efficientnet_lite0": (32, {}),
    "tf_efficientnet_b0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "efficientnetv2_rw_t": (32, {}),
    "gc_efficientnetv2_rw_t": (32, {}),
    "mixnet_s": (64, {}),
    "mnasnet_small": (32, {}),
    "semnasnet_050": (32, {}),
    "spnasnet_100": (32, {}),
    "fbnetc_100": (32, {}),
    "fbnetv3_b": (32, {}),
    "lcnet_035": (32, {}),
    "lcnetv2_small": (64, {}),
    "tinynet_e": (64, {}),
    "hardcorenas_a": (32, {}),
    "ghostnet_050": (32, {}),
    "ghostnetv2_100": (64, {}),
    "ghostnetv3_050": (64, {}),
    "repghostnet_050": (32, {}),
    "rexnet_100": (32, {}),
    "rexnetr_100": (32, {}),
    "repvit_m0_9": (64, {}),
    "fasternet_t0": (64, {}),
    "starnet_s050": (64, {}),
    "shvit_s1": (64, {}),
    "fastvit_t8": (64, {}),
    "fastvit_s12": (64, {}),
    "edgenext_xx_small": (64, {}),
    "swiftformer_xs": (224, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "levit_128s": (224, {}),
    # convolutions with layer norms, mixers
    "convnext_atto": (64, {}),
    "convnext_atto_ols": (64, {}),
    "convnext_atto_rms": (64, {}),
    "convnextv2_atto": (64, {}),
    "convmixer_768_32": (32, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "gmixer_12_224": (32, {"img_size": 32}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "poolformer_s12": (64, {}),
    "poolformerv2_s12": (64, {}),
    "convformer_s18": (64, {}),
    "caformer_s18": (64, {}),
    "mambaout_femto": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "sequencer2d_s": (64, {"img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32)}),
    # transformers
    "vit_tiny_patch16_224": (32, _VIT),
    "vit_small_patch16_18x2_224": (32, _VIT),
    "vit_base_patch16_siglip_224": (32, _VIT),
    "vit_relpos_small_patch16_224": (32, _VIT),
    "vit_srelpos_small_patch16_224": (32, _VIT),
    "vit_tiny_r_s16_p8_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "deit_tiny_patch16_224": (32, _VIT),
    "deit_tiny_distilled_patch16_224": (32, _VIT),
    "deit3_small_patch16_224": (32, _VIT),
    "beit_base_patch16_224": (32, _VIT),
    "beitv2_base_patch16_224": (32, _VIT),
    "eva02_tiny_patch14_224": (32, _VIT),
    "eva_giant_patch14_224": (32, _VIT),
    "flexivit_small": (32, _VIT),
    "cait_xxs24_224": (32, _VIT),
    "convit_tiny": (32, _VIT),
    "tnt_s_patch16_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "crossvit_tiny_240": (240, {}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "pit_ti_224": (64, {"img_size": 64}),
    "pvt_v2_b0": (64, {}),
    "twins_svt_small": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "twins_pcpvt_small": (64, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    "visformer_tiny": (64, {"img_size": 64}),
    "nest_tiny": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (64, _SWIN),
    "swinv2_tiny_window8_256": (64, _SWIN),
    "swinv2_cr_tiny_224": (64, {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
    "davit_tiny": (64, {"depths": (1, 1), "embed_dims": (24, 48), "num_heads": (2, 4)}),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "coatnet_pico_rw_224": (64, {"img_size": 64}),
    "maxxvit_rmlp_nano_rw_256": (64, {"img_size": 64}),
    "gcvit_xxtiny": (224, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "hiera_tiny_224": (224, {"embed_dim": 24, "stages": (1, 1, 1, 1)}),
    "tiny_vit_5m_224": (224, {"embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}),
    "volo_d1_224": (64, {"img_size": 64}),
    "nextvit_small": (64, {}),
}

_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_LAYERS, "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
_DECODER = {**_TEXT, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_DECODER, "num_key_value_heads": 1}
_GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "use_cache": False}
_BART = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 32,
    "use_cache": False,
}
_T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "use_cache": False}
_IMAGE = {**_LAYERS, "hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
_SOUND = {
    **_LAYERS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "vocab_size": 20,
}
_images_of_32, _images_of_64 = partial(_pixels, 32), partial(_pixels, 64)
# name -> the class, what its configuration is given, and its inputs
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[int], dict[str, Tensor]]]] = {
    # text, encoders
    "bert": ("BertForSequenceClassification", _TEXT, _text),
    "bert_relu": ("BertForMaskedLM", {**_TEXT, "hidden_act": "relu"}, _text),
    "roberta": ("RobertaForSequenceClassification", {**_TEXT, "hidden_act": "relu"}, _text),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": WORDS, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "activation": "relu"},
        _text,
    ),
    "albert": ("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16, "hidden_act": "relu"}, _text),
    "electra": ("ElectraForSequenceClassification", {**_TEXT, "embedding_size": 16}, _text),
    "deberta": ("DebertaForSequenceClassification", {**_TEXT, "relative_attention": True}, _text),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "hidden_act": "relu"},
        _text,
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
        _text,
    ),
    "squeezebert": ("SqueezeBertForSequenceClassification", {**_TEXT, "embedding_size": 32}, _text),
    "funnel": (
        "FunnelForSequenceClassification",
        {"vocab_size": WORDS, "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
        _text,
    ),
    "layoutlm": ("LayoutLMForSequenceClassification", {**_TEXT, "max_2d_position_embeddings": 32}, _text),
    "convbert": ("ConvBertForSequenceClassification", {**_TEXT, "embedding_size": 32, "conv_kernel_size": 3}, _text),
    "fnet": ("FNetForSequenceClassification", {**_TEXT, "tpu_short_seq_length": TOKENS}, _words),
    "mpnet": ("MPNetForSequenceClassification", _TEXT, _text),
    "nystromformer": (
        "NystromformerForSequenceClassification",
        {**_TEXT, "num_landmarks": 4, "segment_means_seq_len": TOKENS},
        _text,
    ),
    "modernbert": ("ModernBertForSequenceClassification", {**_TEXT, "pad_token_id": 0}, _text),
    "esm": ("EsmForSequenceClassification", {**_TEXT, "pad_token_id": 1, "mask_token_id": 2}, _text),
    "data2vec_text": ("Data2VecTextForSequenceClassification", _TEXT, _text),
    "ibert": ("IBertForSequenceClassification", _TEXT, _text),
    "roformer": ("RoFormerForSequenceClassification", {**_TEXT, "embedding_size": 32}, _text),
    # text, decoders
    "opt": (
        "OPTForCausalLM",
        {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32},
        _text,
    ),
    "gpt2": ("GPT2LMHeadModel", _GPT, _text),
    "gpt2_relu": ("GPT2ForSequenceClassification", {**_GPT, "activation_function": "relu", "pad_token_id": 0}, _text),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 32,
            "use_cache": False,
        },
        _text,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", _DECODER, _text),
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 8}, _text),
    "bloom": ("BloomForCausalLM", {**_DECODER, "n_layer": 2, "n_head": 2}, _text),
    "llama": ("LlamaForCausalLM", _GROUPED, _text),
    "mistral": ("MistralForCausalLM", _GROUPED, _text),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 2, "experts_implementation": "eager"}, _text),
    "phi": ("PhiForCausalLM", _DECODER, _text),
    "phi3": ("Phi3ForCausalLM", _GROUPED, _text),
    "gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 16}, _text),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED, _text),
    "falcon": ("FalconForCausalLM", _DECODER, _text),
    "stablelm": ("StableLmForCausalLM", _GROUPED, _text),
    "starcoder2": ("Starcoder2ForCausalLM", _GROUPED, _text),
    "nemotron": ("NemotronForCausalLM", _GROUPED, _text),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "use_cache": False},
        _words,
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "use_cache": False,
        },
        _words,
    ),
    # text to text
    "t5": ("T5ForConditionalGeneration", _T5, partial(_both, _text)),
    "t5_encoder": ("T5EncoderModel", _T5, _text),
    "mt5_encoder": ("MT5EncoderModel", {**_T5, "feed_forward_proj": "gated-gelu"}, _text),
    "bart": ("BartForConditionalGeneration", {**_BART, "activation_function": "relu"}, partial(_both, _text)),
    "marian": ("MarianMTModel", {**_BART, "pad_token_id": 0}, partial(_both, _text)),
    "pegasus": ("PegasusForConditionalGeneration", {**_BART, "activation_function": "relu"}, partial(_both, _text)),
    # images
    "vit": ("ViTForImageClassification", {**_IMAGE, "hidden_act": "relu"}, _images_of_32),
    "deit": ("DeiTForImageClassification", _IMAGE, _images_of_32),
    "beit": ("BeitForImageClassification", {**_IMAGE, "use_relative_position_bias": True}, _images_of_32),
    "data2vec_vision": ("Data2VecVisionForImageClassification", _IMAGE, _images_of_32),
    "dinov2": ("Dinov2ForImageClassification", {**_IMAGE, "mlp_ratio": 2}, _images_of_32),
    "clip_vision": ("CLIPVisionModelWithProjection", {**_IMAGE, "projection_dim": 16}, _images_of_32),
    "clip_text": ("CLIPTextModelWithProjection", {**_TEXT, "projection_dim": 16, "eos_token_id": 2}, _text),
    "siglip_vision": ("SiglipVisionModel", _IMAGE, _images_of_32),
    "siglip_text": ("SiglipTextModel", {**_TEXT, "projection_size": 16}, _text),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        _images_of_32,
    ),
    "swinv2": (
        "Swinv2ForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        _images_of_32,
    ),
    "convnext": ("ConvNextForImageClassification", _STAGES, _images_of_32),
    "convnextv2": ("ConvNextV2ForImageClassification", _STAGES, _images_of_32),
    "resnet": (
        "ResNetForImageClassification",
        {**_STAGES, "embedding_size": 16, "hidden_sizes": [16, 32, 32, 64]},
        _images_of_32,
    ),
    "regnet": (
        "RegNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 2, 1], "groups_width": 8},
        _images_of_32,
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "image_size": 32}, _images_of_32),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35, "image_size": 32}, _images_of_32),
    "mobilevit": (
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 24],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
            "num_attention_heads": 2,
            "hidden_act": "relu",
        },
        _images_of_64,
    ),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.25}, _images_of_64),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        _images_of_32,
    ),
    "bit": (
        "BitForImageClassification",
        {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
        _images_of_32,
    ),
    "dpt": (
        "DPTForDepthEstimation",
        {
            **_IMAGE,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16,
            "reassemble_factors": [4, 2, 1, 0.5],
        },
        _images_of_32,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {**_STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, "num_labels": 5},
        _images_of_64,
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        {**_STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
        _images_of_64,
    ),
    "poolformer": ("PoolFormerForImageClassification", _STAGES, _images_of_64),
    "levit": (
        "LevitForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 2]},
        _images_of_64,
    ),
    "cvt": (
        "CvtForImageClassification",
        {"embed_dim": [16, 16, 32], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        _images_of_64,
    ),
    "pvt": (
        "PvtForImageClassification",
        {**_STAGES, "image_size": 64, "num_attention_heads": [1, 1, 2, 2]},
        _images_of_64,
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]},
        _images_of_64,
    ),
    "focalnet": (
        "FocalNetForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "hidden_sizes": [16, 32],
        },
        _images_of_32,
    ),
    "vitmae": (
        "ViTMAEModel",
        {**_IMAGE, "mask_ratio": 0.0},
        _images_of_32,
    ),
    "yolos": (
        "YolosForObjectDetection",
        {**_IMAGE, "image_size": [32, 32], "num_detection_tokens": 4, "use_mid_position_embeddings": False},
        _images_of_32,
    ),
    "vitpose_backbone": ("VitPoseBackbone", {**_IMAGE, "image_size": [32, 32], "patch_size": [8, 8]}, _images_of_32),
    # sound
    "wav2vec2": ("Wav2Vec2ForCTC", {**_SOUND, "hidden_act": "relu"}, _sound),
    "hubert": ("HubertForCTC", _SOUND, _sound),
    "unispeech": ("UniSpeechForCTC", _SOUND, _sound),
    "sew": ("SEWForCTC", {**_SOUND, "squeeze_factor": 1}, _sound),
    "wavlm": ("WavLMForCTC", _SOUND, _sound),
    "data2vec_audio": ("Data2VecAudioForCTC", {**_SOUND, "num_conv_pos_embeddings": 2}, _sound),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0},
        lambda count: {
            "input_features": images((8, 20), count),
            "decoder_input_ids": torch.randint(5, WORDS, (count, TOKENS // 2)),
        },
    ),
    "ast": (
        "ASTForAudioClassification",
        {**_LAYERS, "hidden_size": 32, "intermediate_size": 64, "patch_size": 8, "max_length": 32, "num_mel_bins": 16},
        lambda count: {"input_values": images((32, 16), count)},
    ),
}
COMPUTE_IN_FLOAT32: frozenset[str] = frozenset()
