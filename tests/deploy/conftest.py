"""Calls of tiny pipelines, by plans that are carried out by hand, and what may not change."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TINY, Tiny
from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.pipeline import _PLANNED
from tmpdiff_bench.levels import Level, quantize_dequantize
from tmpdiff_bench.pipelines.layers import quantized_layers
from tmpdiff_bench.plan import PrecisionPlan

PLACES = ("transformer", "unet", "transformer_2", "unet_2", "prior", "decoder")
PLAN = PrecisionPlan.parse("fp32 w4a4 w8a8 w4a4")
REFERENCE = PrecisionPlan.uniform("fp32", len(PLAN))


DEVICE = os.environ.get("TMPDIFF_TEST_DEVICE", "cpu")  # such as cuda, where there is one
torch.backends.cudnn.allow_tf32 = DEVICE == "cpu"  # else fp32 has 10 bits in convolutions there

_BUILT: WeakKeyDictionary[Any, Tiny] = WeakKeyDictionary()


def build(name: str) -> Any:
    """A tiny pipeline."""
    pipe = TINY[name].build().to(DEVICE)
    _BUILT[pipe] = TINY[name]
    return pipe


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Classes are as they were after each test."""
    yield
    for pipe in list(_PLANNED):
        deploy.remove(pipe)


@pytest.fixture
def pipe() -> Any:
    """A pipeline of two passes a step."""
    return build("StableDiffusion3Pipeline")


def call(pipe: Any, steps: int | None = None, **options: Any) -> Tensor:
    """What a tiny pipeline draws: latents where it gives them, two samples where it takes two."""
    tiny = _BUILT[pipe]
    samples = tiny.each(2 if tiny.batches else 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    several = {name: list(values) for name, values in samples.items()}  # some change their list
    arguments = {
        **(several if tiny.batches else {k: v[0] for k, v in samples.items()}),
        "generator": generators if tiny.batches else generators[0],
        "num_inference_steps": steps or tiny.steps,
        "output_type": "latent" if tiny.latent else "np",
        **tiny.call,
        **options,
    }
    return torch.as_tensor(pipe(**arguments)[0]).cpu()


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The modules that levels change."""
    found = {place: getattr(pipe, place, None) for place in PLACES}
    return {place: module for place, module in found.items() if isinstance(module, nn.Module)}


def by_hand(
    pipe: Any,
    plan: PrecisionPlan,
    run: Callable[[Any], Tensor] = call,
    *,
    whole: bool = False,
    layers: Callable[[nn.Module], tuple[str, ...]] = quantized_layers,
) -> Tensor:
    """What `run` draws with the plan carried out by other means: calls of `scheduler.step` counted
    in its class, and the `forward` of each layer replaced while a step is low. Unless it is said to
    be a `whole` one, it is run once before, to see how many steps it has.
    """
    done = count = 0
    kind = type(pipe.scheduler)
    step = kind.step

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        return step(*args, **kwargs)

    def at_level(denoiser: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        calls = steps_of_calls(pipe.scheduler, len(plan))
        level = Level.parse(plan[calls[done if whole else done - count]])
        with ExitStack() as after:
            for name in layers(denoiser) if not level.is_plain else ():
                after.enter_context(_rounded(denoiser.get_submodule(name), level))
            return forward(*args, **kwargs)

    with ExitStack() as after:
        kind.step = counted
        after.callback(setattr, kind, "step", step)
        if not whole:
            run(pipe)
            count, done = done, 0
        for denoiser in denoisers(pipe).values():
            own = vars(denoiser).get("forward")
            at = functools.partial(at_level, denoiser, denoiser.forward)
            denoiser.forward = functools.update_wrapper(at, type(denoiser).forward)
            after.callback(_put_back, denoiser, own)
        return run(pipe)


def _put_back(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward


@contextmanager
def _rounded(layer: Any, level: Level) -> Iterator[None]:
    """A layer of rounded weight that rounds its inputs, and computes as before."""
    own, form = layer.weight, level.activation or "fp32"
    wide = quantize_dequantize(own.flatten(1), level.weight or "fp32", group=level.weight_group)

    def forward(input: Tensor) -> Tensor:
        rows = input if isinstance(layer, nn.Linear) else input.flatten(1)
        found: Tensor = type(layer).forward(layer, quantize_dequantize(rows, form).view_as(input))
        return found

    layer.weight, layer.forward = nn.Parameter(wide.view_as(own), requires_grad=False), forward
    try:
        yield
    finally:
        layer.weight = own
        del layer.forward


def steps_of_calls(scheduler: Any, steps: int) -> list[int]:
    """The step of each call of a scheduler, as its paper has it."""
    calls, kind = len(scheduler.timesteps), type(scheduler).__name__
    if kind == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        return [0] * 4 + [1] * 4 + [2] * 4 + list(range(3, steps))  # Runge and Kutta's four
    if kind == "PNDMScheduler":
        return [0, *range(steps)]  # the first step is taken twice
    if "Heun" in kind or "KDPM2" in kind:
        return [call // 2 for call in range(calls)]
    ends_too = kind in ("SCMScheduler", "DDPMWuerstchenScheduler")  # with where the last step leads
    assert calls == steps + ends_too, kind
    return list(range(steps))


def traces(pipe: Any) -> dict[str, Any]:
    """Everything of a pipeline that a plan must not change, by identity."""
    found: dict[str, Any] = {"class": (type(pipe), type(pipe).__call__), "pipe": [*vars(pipe)]}
    found["scheduler"] = {"step", "set_timesteps"} & vars(pipe.scheduler).keys()
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            for name, child in module.named_modules(remove_duplicate=False):
                found[f"{part}.{name}"] = (id(child), _content(vars(child)))
    return found


def _content(attributes: dict[str, Any]) -> dict[str, Any]:
    """Names of attributes; functions, parameters, children and hooks by identity. Pipelines
    themselves put other buffers and numbers in the place of some.
    """
    held = {k: v for k, v in attributes.items() if k != "_buffers" and isinstance(v, dict)}
    found: dict[str, Any] = {k: {n: id(x) for n, x in v.items()} for k, v in held.items()}
    return found | {
        k: id(v) if callable(v) else None for k, v in attributes.items() if k not in held
    }
