"""Plans in diffusers pipelines: `apply` and `remove`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tmpdiff_bench.deploy.dispatch import PlannedDenoiser
from tmpdiff_bench.deploy.twins import check_place, eager
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import Level
from tmpdiff_bench.pipelines.quantized import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

_PLACES = ("transformer", "unet")


def apply(
    pipe: Any,
    plan: PrecisionPlan,
    *,
    levels: Sequence[str] | None = None,
    quantized: Sequence[str] | None = None,
    resample: bool = False,
) -> None:
    """Make a diffusers pipeline run a plan until `remove`, in place of one that it may run already.

    The plan's steps are those of the whole schedule (`num_inference_steps`), as are the noise
    levels that it was made for: image-to-image calls, which begin in the middle of the schedule,
    begin in the middle of the plan. A call with another number of steps is an error, unless
    `resample` stretches the plan to it. Levels that round nothing beyond the denoiser's own dtype
    run the denoiser itself.

    `levels` are those to keep at hand beside the plan's, so that another plan costs nothing.
    `quantized` names the denoiser's layers that levels change, where its class is not known.

    Raises:
        UsageError: an unknown level, or one that the device lacks; a pipeline without a
            `transformer` or `unet`, with two denoisers, offloaded layer by layer, or with a cache
            across steps.
    """
    wanted = tuple(dict.fromkeys((*(levels or ()), *plan)))
    for level in wanted:
        Level.parse(level)
    place, denoiser = _denoiser(pipe)
    planned = eager(denoiser)
    if isinstance(planned, PlannedDenoiser):
        planned.set_plan(plan, wanted, resample=resample)
        return
    _check(planned)

    def layers(module: nn.Module) -> Sequence[str]:
        if quantized is None:
            return quantized_layers(module)
        return [_below_adapter(module, name) for name in quantized]

    with _Offloading(pipe, wanted):
        made = PlannedDenoiser(
            pipe, denoiser, plan, levels=wanted, layers=layers, resample=resample
        )
        _put(pipe, place, made)


def remove(pipe: Any) -> None:
    """Give a pipeline its own denoiser back, the very same object.

    Raises `UsageError` where no plan was applied.
    """
    place, denoiser = _denoiser(pipe)
    planned = eager(denoiser)
    if not isinstance(planned, PlannedDenoiser):
        raise UsageError("this pipeline runs no plan: there is nothing to remove")
    with _Offloading(pipe):
        _put(pipe, place, planned.original)
    if "_diffusers_hook" in vars(planned):  # offloaded by groups while it ran the plan
        from diffusers.hooks import group_offloading

        group_offloading._maybe_remove_and_reapply_group_offloading(eager(planned.original))


class _Offloading:
    """Takes the hooks of model offloading off, and lets diffusers set them anew afterwards."""

    def __init__(self, pipe: Any, levels: Sequence[str] = ()) -> None:
        self._pipe, self._on = pipe, bool(getattr(pipe, "_all_hooks", None))
        if self._on:
            check_place(_denoiser(pipe)[1], levels, pipe._offload_device)

    def __enter__(self) -> None:
        if self._on:
            self._pipe.remove_all_hooks()

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._pipe.enable_model_cpu_offload(device=self._pipe._offload_device)


def _below_adapter(denoiser: nn.Module, name: str) -> str:
    """The name of a layer, also where a LoRA has been put around it."""
    inner = f"{name}.base_layer"
    return inner if inner in dict(denoiser.named_modules()) else name


def _denoiser(pipe: Any) -> tuple[str, nn.Module]:
    found = [(name, getattr(pipe, name, None)) for name in _PLACES]
    there = [(name, module) for name, module in found if isinstance(module, nn.Module)]
    if len(there) != 1 or getattr(pipe, "transformer_2", None) is not None:
        raise UsageError(
            f"a {type(pipe).__name__} has {len(there)} of {', '.join(_PLACES)}, or a second "
            "denoiser: pipelines with exactly one are supported"
        )
    return there[0]


def _check(denoiser: nn.Module) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise UsageError(
            "the denoiser keeps results across steps (enable_cache), which plans change: "
            "call disable_cache() first"
        )
    if any("_hf_hook" in vars(module) for module in list(denoiser.modules())[1:]):
        raise UsageError(
            "the denoiser is offloaded layer by layer (enable_sequential_cpu_offload): use "
            "enable_model_cpu_offload or enable_group_offload"
        )


def _put(pipe: Any, place: str, module: nn.Module) -> None:
    # past the pipeline's own __setattr__, which would write the class into its configuration
    object.__setattr__(pipe, place, module)
