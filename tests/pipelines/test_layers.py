"""The rule for quantized layers, on classes as diffusers configures them and without weights."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.embeddings import (
    IPAdapterPlusImageProjection,
    IPAdapterTimeImageProjection,
    MultiIPAdapterImageProjection,
)
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.pipelines.layers import quantized_layers, resolve_layers

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# As they are by default, which mostly is a published model, or with what else they need
NAMES = """
    AceStepTransformer1DModel AllegroTransformer3DModel AuraFlowTransformer2DModel
    BriaFiboTransformer2DModel BriaTransformer2DModel ChromaTransformer2DModel
    ChronoEditTransformer3DModel CogVideoXTransformer3DModel CogView3PlusTransformer2DModel
    CogView4Transformer2DModel ConsisIDTransformer3DModel CosmosTransformer3DModel
    DiTTransformer2DModel EasyAnimateTransformer3DModel ErnieImageTransformer2DModel
    Flux2Transformer2DModel FluxTransformer2DModel GlmImageTransformer2DModel
    HiDreamImageTransformer2DModel HunyuanDiT2DModel HunyuanVideoTransformer3DModel Kandinsky3UNet
    Kandinsky5Transformer3DModel LTX2VideoTransformer3DModel LTXVideoTransformer3DModel
    LatteTransformer3DModel Lumina2Transformer2DModel LuminaNextDiT2DModel
    MiniMaxH3Transformer3DModel MochiTransformer3DModel
    OmniGenTransformer2DModel OvisImageTransformer2DModel PRXTransformer2DModel
    PixArtTransformer2DModel PriorTransformer QwenImageTransformer2DModel SD3Transformer2DModel
    SanaTransformer2DModel SanaVideoTransformer3DModel SkyReelsV2Transformer3DModel
    StableAudioDiTModel StableCascadeUNet UNet1DModel UNet2DConditionModel UNet2DModel
    UNet3DConditionModel UNetMotionModel UNetSpatioTemporalConditionModel UVit2DModel
    WanAnimateTransformer3DModel WanTransformer3DModel WanVACETransformer3DModel
    ZImageTransformer2DModel
"""
SIZES: dict[str, dict[str, Any]] = {
    "ConsisIDTransformer3DModel": {"is_train_face": True},
    "EasyAnimateTransformer3DModel": {
        **{"num_attention_heads": 48, "attention_head_dim": 64, "num_layers": 4},
        **{"in_channels": 33, "out_channels": 16, "patch_size": 2, "mmdit_layers": 2},
        **{"text_embed_dim": 3584, "text_embed_dim_t5": None},
    },
    "HiDreamImageTransformer2DModel": {
        **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "text_emb_dim": 2048},
        **{"num_layers": 2, "num_single_layers": 2, "llama_layers": [0, 1, 2, 3]},
        **{"attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096]},
        **{"num_routed_experts": 2, "num_activated_experts": 1},
        **{"axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128)},
    },
    "HunyuanDiT2DModel": {
        **{"in_channels": 4, "patch_size": 2, "sample_size": 128},
        **{"hidden_size": 1408, "num_layers": 40},
    },
    "LatteTransformer3DModel": {
        **{"attention_head_dim": 72, "cross_attention_dim": 1152, "num_layers": 28},
        **{"in_channels": 4, "sample_size": 64, "patch_size": 2, "video_length": 16},
        **{"num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single", "caption_channels": 4096},
        "norm_elementwise_affine": False,
    },
    "LuminaNextDiT2DModel": {"in_channels": 4, "num_kv_heads": 8},
    "OmniGenTransformer2DModel": {
        "in_channels": 4,
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48},
    },
    "StableCascadeUNet": {
        **{"conditioning_dim": 2048, "block_out_channels": (2048, 2048)},
        "switch_level": (False,),
    },
    "WanTransformer3DModel": {"added_kv_proj_dim": 5120, "image_dim": 1280},
    "ZImageTransformer2DModel": {"siglip_feat_dim": 1152},
}
# What makes up half of DiT and is not its blocks' own: a timestep embedder and adaLN in each block
LOW_SHARE = {"DiTTransformer2DModel": 0.59}
# Names of classes between denoiser and layer, and of the layer's own place, that speak against it
WRONG_CLASS = re.compile(
    r"Norm|Embed|Modulation|Modulate|Timestep(?!T)|Approximator|TextProjection|FiLM|Pooling|lora"
)
WRONG_PLACE = re.compile(
    r"time|emb|(img|txt)_mod|adaLN|adaln|caption|modulation|guidance|(^|\.)mapper|^proj_(in|out)"
)
ATTENTION = "{0}.to_q {0}.to_k {0}.to_v {0}.to_out.0"
JOINT = ATTENTION + " {0}.add_q_proj {0}.add_k_proj {0}.add_v_proj {0}.to_add_out"
FEED_FORWARD = "{0}.net.0.proj {0}.net.2"
SWIGLU = "{0}.w1 {0}.w2 {0}.w3"


def each(*parts: str) -> str:
    """`ATTENTION` and the like of places: pairs of a text and the places it is for."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return " ".join(text.format(place) for text, places in pairs for place in places.split())


SELF = each(ATTENTION, "attn1", FEED_FORWARD, "ff")
CROSS = each(ATTENTION, "attn1 attn2", FEED_FORWARD, "ff")
DOUBLE = each(JOINT, "attn", FEED_FORWARD, "ff ff_context")
SINGLE = "proj_mlp proj_out attn.to_q attn.to_k attn.to_v"
AURA = "{0}.linear_1 {0}.linear_2 {0}.out_projection"
HIDREAM = "{0}.to_q {0}.to_k {0}.to_v {0}.to_out"
EXPERTS = each(SWIGLU, "ff_i.shared_experts ff_i.experts.0 ff_i.experts.1")
KANDINSKY = "{0}.to_query {0}.to_key {0}.to_value {0}.out_layer"
SPATIAL = each("transformer_blocks.0.{0}", CROSS)
TEMPORAL = each(
    "temporal_transformer_blocks.0.{0}", each(ATTENTION, "attn1 attn2", FEED_FORWARD, "ff_in ff")
)
SAMPLERS = {"Downsample2D": "conv", "Upsample2D": "conv"}
# By hand, from the source of each class: its kinds of block, and the layers in one that levels
# change. A block may lack some (the last one's text stream, a shortcut). All others stay.
BLOCKS: dict[str, dict[str, str]] = {
    "AuraFlowTransformer2DModel": {
        "AuraFlowJointTransformerBlock": each(JOINT, "attn", AURA, "ff ff_context"),
        "AuraFlowSingleTransformerBlock": each(ATTENTION, "attn", AURA, "ff"),
    },
    "ChromaTransformer2DModel": {  # not what makes its modulation
        "ChromaTransformerBlock": DOUBLE,
        "ChromaSingleTransformerBlock": SINGLE,
    },
    "CogVideoXTransformer3DModel": {"CogVideoXBlock": SELF},
    "CosmosTransformer3DModel": {"CosmosTransformerBlock": CROSS},
    "DiTTransformer2DModel": {"BasicTransformerBlock": SELF},
    "Flux2Transformer2DModel": {
        "Flux2TransformerBlock": each(
            JOINT, "attn", "{0}.linear_in {0}.linear_out", "ff ff_context"
        ),
        "Flux2SingleTransformerBlock": "attn.to_qkv_mlp_proj attn.to_out",
    },
    # its own pattern `proj_out` is for the last layer
    "GlmImageTransformer2DModel": {"GlmImageTransformerBlock": SELF},
    "HiDreamImageTransformer2DModel": {  # the router is no layer, but a parameter
        "HiDreamImageTransformerBlock": each(
            HIDREAM + " {0}.to_q_t {0}.to_k_t {0}.to_v_t {0}.to_out_t", "attn1", SWIGLU, "ff_t"
        )
        + f" {EXPERTS}",
        "HiDreamImageSingleTransformerBlock": each(HIDREAM, "attn1") + f" {EXPERTS}",
    },
    "HunyuanVideoTransformer3DModel": {  # the class keeps all of its context embedder
        "HunyuanVideoTransformerBlock": DOUBLE,
        "HunyuanVideoSingleTransformerBlock": SINGLE,
    },
    "Kandinsky3UNet": {
        "Kandinsky3ResNetBlock": each("resnet_blocks.{0}.projection", "0 1 2 3")
        + " resnet_blocks.2.down_sample shortcut_projection shortcut_down_sample",
        "Kandinsky3AttentionBlock": each(ATTENTION, "attention") + " feed_forward.0 feed_forward.2",
    },
    "Kandinsky5Transformer3DModel": {
        "Kandinsky5TransformerEncoderBlock": each(
            KANDINSKY, "self_attention", "{0}.in_layer {0}.out_layer", "feed_forward"
        ),
        "Kandinsky5TransformerDecoderBlock": each(
            KANDINSKY,
            "self_attention cross_attention",
            "{0}.in_layer {0}.out_layer",
            "feed_forward",
        ),
    },
    "LTXVideoTransformer3DModel": {"LTXVideoTransformerBlock": CROSS},
    "Lumina2Transformer2DModel": {  # with noise_refiner and context_refiner
        "Lumina2TransformerBlock": each(ATTENTION, "attn", "feed_forward.linear_{0}", "1 2 3")
    },
    "MochiTransformer3DModel": {
        "MochiTransformerBlock": each(JOINT, "attn1", FEED_FORWARD, "ff ff_context")
    },
    "QwenImageTransformer2DModel": {
        "QwenImageTransformerBlock": each(JOINT, "attn", FEED_FORWARD, "img_mlp txt_mlp")
    },
    "SanaTransformer2DModel": {
        "SanaTransformerBlock": each(
            ATTENTION, "attn1 attn2", "ff.conv_{0}", "inverted depth point"
        )
    },
    "SD3Transformer2DModel": {"JointTransformerBlock": DOUBLE},
    "StableCascadeUNet": {  # not SDCascadeTimestepBlock
        "SDCascadeResBlock": "depthwise channelwise.0 channelwise.4",
        "SDCascadeAttnBlock": each(ATTENTION, "attention") + " kv_mapper.1",
        "UpDownBlock2d": "blocks.0 blocks.1",
    },
    "UNet2DConditionModel": SAMPLERS
    | {
        "ResnetBlock2D": "conv1 conv2 conv_shortcut",
        "Transformer2DModel": f"proj_in {SPATIAL} proj_out",
    },
    "UNetSpatioTemporalConditionModel": SAMPLERS
    | {
        "SpatioTemporalResBlock": each(
            "{0}.conv1 {0}.conv2", "spatial_res_block temporal_res_block"
        )
        + " spatial_res_block.conv_shortcut",
        "TransformerSpatioTemporalModel": f"proj_in {SPATIAL} {TEMPORAL} proj_out",
    },
    "UVit2DModel": {
        "ConvNextBlock": "depthwise channelwise_linear_1 channelwise_linear_2",
        "SkipFFTransformerBlock": each(ATTENTION, "attn1 attn2") + " kv_mapper",
        "BasicTransformerBlock": CROSS,
    },
    "WanTransformer3DModel": {  # of images to videos
        "WanTransformerBlock": each(ATTENTION, "attn1 attn2", FEED_FORWARD, "ffn")
        + " attn2.add_k_proj attn2.add_v_proj"
    },
    "ZImageTransformer2DModel": {  # with noise_, context_ and siglip_refiner
        "ZImageTransformerBlock": each(ATTENTION, "attention", SWIGLU, "feed_forward")
    },
}


def without_weights(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, name)(**options)


@cache
def denoiser(name: str) -> Any:
    """Not to be changed."""
    return without_weights(name, **SIZES.get(name, {}))


def by_hand(module: nn.Module) -> tuple[str, ...]:
    """Layers by the lists that stood here for four classes, one a class."""
    blocks, kept = LISTED[type(module).__name__]
    return tuple(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and name.split(".")[0] in blocks
        and not any(part.startswith((*kept, "lora_")) for part in name.split("."))
    )


PLAIN = ("transformer_blocks",), ("norm",)
LISTED = {
    "SD3Transformer2DModel": PLAIN,
    "PixArtTransformer2DModel": PLAIN,
    "FluxTransformer2DModel": (("transformer_blocks", "single_transformer_blocks"), ("norm",)),
    "UNet2DConditionModel": (("down_blocks", "mid_block", "up_blocks"), ("norm", "time_emb_proj")),
}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("SD3Transformer2DModel", {"num_layers": 3, "dual_attention_layers": (0, 1)}),
    ("PixArtTransformer2DModel", {"caption_channels": 4096, "sample_size": 64}),
    ("UNet2DConditionModel", {"attention_type": "gated", "cross_attention_dim": 768}),
]
SDXL = {
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
    **{"projection_class_embeddings_input_dim": 2816, "cross_attention_dim": 2048},
    **{"attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280)},
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    **{"transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True},
}
DEEPFLOYD = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    **{"block_out_channels": (192, 384), "resnet_time_scale_shift": "scale_shift"},
    **{"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"},
    **{"addition_embed_type": "text", "cross_attention_dim": 768},
}
UPSCALER = {
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
    "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"),
    **{"mid_block_type": None, "block_out_channels": (256, 256)},
    **{"cross_attention_dim": 768, "attention_head_dim": 64},
}
UNETS = [("UNet2DConditionModel", options) for options in (SDXL, DEEPFLOYD, UPSCALER)]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LISTED), *OTHERS, *UNETS])
def test_the_rule_gives_what_lists_by_hand_gave(name: str, options: dict[str, Any]) -> None:
    module = without_weights(name, **options)
    assert quantized_layers(module) == by_hand(module)


def test_image_adapters_are_no_blocks() -> None:
    """Theirs are lists of like modules; those of their layers that stand in blocks are changed."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=64)
        projection = IPAdapterPlusImageProjection(embed_dims=32, hidden_dims=32, dim_head=16)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        unet.mid_block.attentions[0].to_k_ip = nn.ModuleList([nn.Linear(2, 2)])
        sd3 = diffusers.SD3Transformer2DModel(num_layers=2)
        sd3.image_proj = IPAdapterTimeImageProjection(32, 64, 16, 2, 2)
    for module in (unet, sd3):
        assert quantized_layers(module) == by_hand(module)
    assert "mid_block.attentions.0.to_k_ip.0" in quantized_layers(unet)


@pytest.mark.parametrize("name", NAMES.split())
def test_properties(name: str) -> None:
    """Most parameters, in module order, and no norm, modulation, embedder, first or last layer."""
    module = denoiser(name)
    names = quantized_layers(module)
    modules = dict(module.named_modules())
    assert names
    assert list(names) == [other for other in modules if other in set(names)]
    assert all(isinstance(modules[layer], LAYERS) for layer in names)
    for layer in names:
        parts = layer.split(".")
        around = [modules[".".join(parts[:end])] for end in range(1, len(parts))]
        wrong = [type(m).__name__ for m in around if WRONG_CLASS.search(type(m).__name__)]
        assert not wrong, (layer, wrong)
        assert not WRONG_PLACE.search(layer), layer
    share = sum(modules[layer].weight.numel() for layer in names)
    assert share >= LOW_SHARE.get(name, 0.6) * sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_of_each_kind_of_block(name: str) -> None:
    module = denoiser(name)
    names, covered = set(quantized_layers(module)), set()
    for kind, listed in BLOCKS[name].items():
        wanted, seen = set(listed.split()), set()
        for path, block in module.named_modules():
            if type(block).__name__ == kind:
                has = {inner for inner, part in block.named_modules() if isinstance(part, LAYERS)}
                inside = {n.removeprefix(f"{path}.") for n in names if n.startswith(f"{path}.")}
                assert inside == wanted & has, path
                seen |= inside
                covered |= {f"{path}.{inner}" for inner in inside}
        assert seen == wanted, kind
    assert covered == names


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Lumina2Transformer2DModel", (26 + 2 + 2) * 7),
        ("ZImageTransformer2DModel", (30 + 2 + 2 + 2) * 7),
        ("FluxTransformer2DModel", 19 * 12 + 38 * 5),
        ("MochiTransformer3DModel", 48 * 12 - 3),
        ("WanVACETransformer3DModel", 40 * 10 + 8 * 11 + 1),
    ],
)
def test_number_of_layers(name: str, count: int) -> None:
    assert len(quantized_layers(denoiser(name))) == count


def block() -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("feed", "gate", "norm", "adaLN")})


class Toy(nn.Module):
    """Two blocks with a patch layer before them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([block(), block()])


def test_classes_name_what_they_keep() -> None:
    """As layerwise casting reads them: patterns searched for, also in what is around a layer."""

    class Own(Toy):
        _skip_layerwise_casting_patterns = [r"^blocks\.1$"]
        _keep_in_fp32_modules = "gate"

    assert len(quantized_layers(Toy())) == 4
    assert quantized_layers(Own()) == ("blocks.0.feed",)


def test_subclasses_of_layers_are_layers() -> None:
    """As those of bitsandbytes, but not those that torch's attention never calls."""

    class Packed(nn.Linear):
        pass

    toy = Toy()
    toy.mid_block = block()  # stands in no list, as some of UNets'
    first, second = toy.blocks
    first.add_module("feed", Packed(4, 4))
    second.add_module("feed", nn.MultiheadAttention(4, 1))
    second.add_module("up", nn.ConvTranspose1d(4, 4, 1))
    names = ("blocks.0.feed", "blocks.0.gate", "blocks.1.gate", "mid_block.feed", "mid_block.gate")
    assert quantized_layers(toy) == names
    with pytest.raises(UsageError, match="a NonDynamicallyQuantizableLinear: levels change"):
        resolve_layers(toy, ["blocks.1.feed.out_proj"])


def test_compiled_denoisers_have_the_same_layers() -> None:
    toy = Toy()
    names = quantized_layers(torch.compile(toy))  # type: ignore[arg-type]  # a module in another
    assert names == tuple(f"_orig_mod.{name}" for name in quantized_layers(toy))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("SD3Transformer2DModel", ".*(to_q|to_out.0|net.0.proj|net.2|norm1.linear)"),
        ("UNet2DConditionModel", ".*(to_q|conv1|time_emb_proj)"),
        ("I2VGenXLUNet", ".*net.2"),  # also in an encoder, of whose list `net` it's the one layer
    ],
)
def test_adapters_stay_and_the_layers_below_do_not(name: str, targets: str) -> None:
    plain, adapted = denoiser(name), without_weights(name)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), adapted)
    names, found = quantized_layers(plain), quantized_layers(adapted)
    assert any(layer.endswith(".base_layer") for layer in found)
    assert tuple(layer.removesuffix(".base_layer") for layer in found) == names
    assert resolve_layers(adapted, names) == resolve_layers(adapted, found) == found
    assert resolve_layers(plain, found) == names
    twice = next(layer for layer in found if layer.endswith(".base_layer"))
    with pytest.raises(UsageError, match="twice"):
        resolve_layers(adapted, [twice.removesuffix(".base_layer"), twice])


def test_names_of_the_user() -> None:
    toy = Toy()
    assert resolve_layers(toy, None) == quantized_layers(toy)
    assert resolve_layers(toy, ["patch", "blocks.0.norm"]) == ("patch", "blocks.0.norm")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "quantized= names no layers: leave it out, or name those levels change"),
        (
            ["blocks.0.fed"],
            "unknown layer 'blocks.0.fed': did you mean 'blocks.0.feed'? known: blocks.0.feed, "
            "blocks.0.gate, blocks.1.feed and 6 others",
        ),
        (["patch", "blocks.0.feed", "patch"], "quantized= names 'patch' twice"),
        (
            ["blocks.0"],
            "quantized= names 'blocks.0', a ModuleDict: levels change linear and convolution "
            "layers only",
        ),
    ],
)
def test_wrong_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve_layers(Toy(), names)
    assert str(error.value) == message


def test_a_denoiser_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        resolve_layers(nn.Linear(1, 1), None)
    assert str(error.value) == (
        "which layers of a Linear are to be quantized is not known: it has no repeated blocks with "
        "linear or convolution layers; name them by quantized="
    )
