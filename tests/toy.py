"""A toy pipeline of diffusers with known arithmetic, and levels with known effects.

The pipeline is a real `DiffusionPipeline`: its own loop, a real scheduler, a text encoder, and a
transformer of blocks with linear layers, which `quantized_layers` finds and `LevelBank` exchanges.
Under a `ToyBank` the layers do nothing: the level's function of the latents alone is the velocity.
Then a step is `x + (f(x) + length) / S` exactly up to float32 rounding, `length` being 0.01 of the
prompt's, and that of the negative prompt plus guidance times the difference where guidance is above
1, in two passes. `by_hand` is that loop, written without pipeline, scheduler or engine. Noise is
`torch.randn` of a sample's own generator. No sample and no element depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines.calls import Call

CHANNELS, SCALE, SIDE = 2, 8, 4
SHAPE = (CHANNELS, SIDE, SIDE)  # of one sample's latents, where no height and width are asked for
Function = Callable[[Tensor], Tensor]
LEVELS: dict[str, Function] = {
    "fp32": lambda x: -x,
    "w8a8": lambda x: -x + 0.01 * torch.sin(9 * x),
    "w4a4": lambda x: -x + 0.1 * torch.cos(5 * x),
}
NAN: Function = lambda x: x * torch.nan  # noqa: E731


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_hidden, self.to_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out(torch.tanh(self.to_hidden(x)))


class ToyTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Velocities of latents (n, c, h, w): of `function` where there is one, else of the blocks,
    which mix channels; `lengths` (n, 1) are added.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = CHANNELS, depth: int = 2, sample_size: int = SIDE) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(channels) for _ in range(depth))
        self.function: Function | None = None

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        if self.function is not None:
            found = self.function(hidden_states)
        else:
            rows = hidden_states.movedim(1, -1)
            for block in self.blocks:
                rows = block(rows)
            found = -rows.movedim(-1, 1)
        return (found + encoder_hidden_states[:, :, None, None],)


class ToyTextEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A hundredth of each length, (n, 1); `calls` counts."""

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01), requires_grad=False)
        self.calls = 0

    def forward(self, lengths: Tensor) -> Tensor:
        self.calls += 1
        return lengths * self.scale


class ToyPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Euler steps of 1/S from noise; the velocity is also of the prompt."""

    def __init__(
        self,
        scheduler: Any,
        transformer: ToyTransformer,
        text_encoder: ToyTextEncoder,
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler, transformer=transformer, text_encoder=text_encoder
        )
        self.vae_scale_factor, self.default_sample_size = SCALE, SIDE
        self.image_processor = VaeImageProcessor(vae_scale_factor=SCALE)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([[float(len(prompt))] for prompt in prompts], device=self.device)
        return self.text_encoder(lengths.to(self.dtype))

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        negative_prompt: Any = None,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = negative_prompt or ""
        negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        guided = guidance_scale > 1
        lengths = self.encode_prompt([*negatives, *prompts] if guided else prompts)
        sides = [(side or SIDE * SCALE) // SCALE for side in (height, width)]
        channels = self.transformer.config.channels
        latents = randn_tensor(
            (len(prompts), channels, *sides),
            generator=generator,
            device=self._execution_device,
            dtype=self.transformer.dtype,
        )
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                rows = torch.cat([latents, latents]) if guided else latents
                velocity = self.transformer(rows, timestep, encoder_hidden_states=lengths)[0]
                if guided:
                    without, following = velocity.chunk(2)
                    velocity = without + guidance_scale * (following - without)
                # sigmas fall
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    told = callback_on_step_end(self, step, timestep, {"latents": latents})
                    latents = told.pop("latents", latents)
                bar.update()
        found: Any = latents
        if output_type != "latent":
            found = self.image_processor.postprocess(decoded(latents) * 2 - 1, output_type)
        return ImagePipelineOutput(images=found) if return_dict else (found,)


class ToyBank(LevelBank):
    """Levels given as functions of latents to velocities; `batches` has the rows of every call."""

    def __init__(self, denoiser: nn.Module, functions: Mapping[str, Function]) -> None:
        self.denoiser, self.levels, self._functions = denoiser, tuple(functions), dict(functions)
        self.batches: dict[str, list[int]] = {level: [] for level in functions}
        self.own = {}

    def at(self, level: str) -> AbstractContextManager[object]:
        self.check(level)
        return self._at(level)

    @contextmanager
    def _at(self, level: str) -> Iterator[None]:
        def function(latents: Tensor) -> Tensor:
            self.batches[level].append(len(latents))
            return self._functions[level](latents)

        vars(self.denoiser)["function"] = function
        try:
            yield
        finally:
            vars(self.denoiser)["function"] = None


def toy(scheduler: Any = None, *, depth: int = 2) -> ToyPipeline:
    """A pipeline of random weights, always the same, without a progress bar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = ToyTransformer(depth=depth)
    pipe = ToyPipeline(
        scheduler or FlowMatchEulerDiscreteScheduler(), transformer.eval(), ToyTextEncoder()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def toy_banks(functions: Mapping[str, Function]) -> Callable[..., dict[str, LevelBank]]:
    """What stands in the place of `level_banks`: levels are these functions, whatever is asked."""

    def level_banks(pipe: Any, levels: Sequence[str] = (), **_: Any) -> dict[str, LevelBank]:
        return {"transformer": ToyBank(pipe.transformer, functions)}

    return level_banks


def toy_call(
    prompts: Sequence[str], steps: int, *, seeds: Sequence[int] | None = None, **shared: Any
) -> Call:
    """A call of a sample a prompt, with seeds 0, 1, ... where none are given."""
    own = tuple(range(len(prompts))) if seeds is None else tuple(seeds)
    return Call({**shared, "num_inference_steps": steps}, {"prompt": list(prompts)}, own)


def noise(seeds: Sequence[int], shape: Sequence[int] = SHAPE) -> Tensor:
    """What the pipeline starts from, (n, ...)."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def by_hand(
    functions: Mapping[str, Function],
    levels: Iterable[str],
    call: Call,
    *,
    shape: Sequence[int] = SHAPE,
) -> Tensor:
    """Latents (n, ...) after `levels`, a plan or the beginning of one: an independent loop, sample
    by sample.
    """
    steps, guidance = call.shared["num_inference_steps"], call.shared.get("guidance_scale", 1.0)
    negative = len(call.shared.get("negative_prompt", ""))
    rows = []
    for x, prompt in zip(noise(call.seeds, shape), call.each["prompt"], strict=True):
        length = len(prompt)
        if guidance > 1:
            length = negative + guidance * (length - negative)
        for level in levels:
            x = x + (functions[level](x) + 0.01 * length) / steps
        rows.append(x)
    return torch.stack(rows)


def decoded(latents: Tensor) -> Tensor:
    """Images (n, 3, 8 h, 8 w) in [0, 1] of latents of two channels."""
    images = latents.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3).float().sigmoid()
    return torch.cat([images, images[:, :1]], dim=1)
