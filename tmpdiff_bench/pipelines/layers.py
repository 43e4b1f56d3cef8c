"""Which layers of a denoiser precision levels change, by one rule for denoisers of any class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from torch import nn

from tmpdiff_bench.errors import UsageError, unknown

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# a UNet's blocks, some of which stand in no list
_UNET_BLOCKS = re.compile(r"(^|\.)(down|mid|up)_blocks?$")
# Module lists that are no blocks: projections of contexts and of adapters' images, and the network
# that makes what modulates the blocks (Chroma). Inside blocks, projections are what is wanted.
_NO_BLOCKS = re.compile(r"proj|guidance")
# Names of what norms, modulates or embeds, and of adapters. The first three see few numbers and
# cost little, but all others hang on them. A `mapper` (Stable Cascade's) and what begins with
# `scale_` (FiLM's) make scales and shifts of the timestep. `_orig_mod` is torch.compile's.
_KEPT = re.compile(
    r"norm|emb|adaln|modulation|(^|\.|(?<!_orig)_)mod(\.|$)|(^|\.)(scale_|mapper|lora_)",
    re.IGNORECASE,
)


def quantized_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of the linear and convolution layers inside a denoiser's blocks, in module order.

    Blocks are the members of module lists, wherever these stand (so those that refine the noise or
    the context too), and a UNet's down, mid and up blocks. Norms, modulation and embedders stay, as
    does what the class itself names in `_skip_layerwise_casting_patterns` and
    `_keep_in_fp32_modules`: also token refiners inside an embedder (HunyuanVideo's). Of a layer
    with a LoRA around it, the layer below is named.

    Raises:
        UsageError: a denoiser in which there are none.
    """
    blocks = {
        name
        for name, module in denoiser.named_modules()
        if (_is_list_of_blocks(module) or _UNET_BLOCKS.search(name)) and not _NO_BLOCKS.search(name)
    }
    own = tuple(_patterns_of(denoiser))
    found = []
    for name, module in denoiser.named_modules():
        if not _is_layer(module) or _KEPT.search(name) or blocks.isdisjoint(_paths(name)):
            continue
        # As diffusers' layerwise casting reads them: all that stands in a match matches. In 0.42 no
        # class's `proj_out` or `rope` meets a layer in a block: they add nothing to _KEPT yet.
        if not any(pattern.search(path) for path in _paths(name) for pattern in own):
            found.append(name)
    if not found:
        raise UsageError(
            f"which layers of a {type(denoiser).__name__} are to be quantized is not known: it has "
            "no repeated blocks with linear or convolution layers; name them by quantized="
        )
    return tuple(found)


def resolve_layers(denoiser: nn.Module, quantized: Sequence[str] | None) -> tuple[str, ...]:
    """The layers that levels change: those named, else those of `quantized_layers`.

    A name holds with and without a LoRA around the layer, be it given as `NAME` or as
    `NAME.base_layer`.

    Raises:
        UsageError: no names; a name that does not exist, is given twice, or is of no linear or
            convolution layer; nothing given and nothing found by the rule.
    """
    if quantized is None:
        return quantized_layers(denoiser)
    if not quantized:
        raise UsageError("quantized= names no layers: leave it out, or name those levels change")
    modules = dict(denoiser.named_modules())
    found: list[str] = []
    for name in quantized:
        bare = name.removesuffix(".base_layer")
        layer = f"{bare}.base_layer" if f"{bare}.base_layer" in modules else bare
        if layer not in modules:
            raise _unknown_layer(name, [other for other in modules if _is_layer(modules[other])])
        if not _is_layer(modules[layer]):
            raise UsageError(
                f"quantized= names {name!r}, a {type(modules[layer]).__name__}: levels change "
                "linear and convolution layers only"
            )
        if layer in found:
            raise UsageError(f"quantized= names {name!r} twice")
        found.append(layer)
    return tuple(found)


def _is_layer(module: nn.Module) -> bool:
    # torch's own attention takes the weight of its output layer and never calls the layer
    uncalled = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return isinstance(module, _LAYERS) and not uncalled


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether this is a module list, and not one of layers, as a feed-forward's `net` is.

    Its members need not be of one class: a UNet's blocks differ, and some stand for nothing.
    """
    if not isinstance(module, nn.ModuleList):
        return False
    return not any(_is_layer(getattr(member, "base_layer", member)) for member in module)


def _patterns_of(denoiser: nn.Module) -> Iterator[re.Pattern[str]]:
    """What the class says is to keep its precision, in diffusers' own two ways."""
    for attribute in ("_skip_layerwise_casting_patterns", "_keep_in_fp32_modules"):
        patterns = getattr(denoiser, attribute, None) or ()
        yield from map(re.compile, [patterns] if isinstance(patterns, str) else patterns)


def _paths(name: str) -> list[str]:
    """The name itself and those of the modules around it: `a`, `a.b` and `a.b.c` of `a.b.c`."""
    return [name[: dot.start()] for dot in re.finditer(r"\.|$", name)]


def _unknown_layer(name: str, layers: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, layers, n=3, cutoff=0)  # a denoiser has hundreds
    return UsageError(f"{unknown('layer', name, near)} and {len(layers) - len(near)} others")
