"""Every family's own `__call__` with a plan: against itself, the engine, and exchange by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    HeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from torch import Tensor

from tests.deploy.conftest import PROMPTS, call, exchanged, of_its_own
from tmpdiff_bench import deploy
from tmpdiff_bench.deploy.comparison import call_options
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.noise import initial_noise
from tmpdiff_bench.pipelines import MODELS, LoadedModel, load_model
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.resources import data_folder
from tmpdiff_bench.trajectory import PrefixEngine

# diffusers 0.42 converts tensors in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PLAN = PrecisionPlan.parse("w4a4 fp32 w8a8")
EMBEDDED = [name for name in MODELS if (data_folder() / "models" / name).is_dir()]


def check_against_engine(loaded: LoadedModel, guidance: float) -> None:
    """The reference plan is the untouched pipeline, any plan the engine's run, both bit for bit."""
    pipe, stepwise = loaded.pipeline, loaded.stepwise(steps=len(PLAN), guidance=guidance)
    noise = initial_noise([(prompt, 0) for prompt in PROMPTS], stepwise.latent_shape)

    def own_call() -> Tensor:
        arguments = call_options(stepwise, noise.clone())
        found = pipe(PROMPTS, output_type="latent", **arguments)
        if found.images.ndim == 3:  # flux gives latents as it packs them
            side = stepwise.resolution[0]
            return pipe._unpack_latents(found.images, side, side, pipe.vae_scale_factor)
        return found.images

    bank = LevelBank(stepwise.denoiser, ("fp32", "w8a8", "w4a4"), stepwise.quantized)
    # flux guides in two passes of all prompts one after the other, the engine in one of twice as
    # many rows: of one prompt at a time these are as many
    rows = [[0], [1]] if loaded.family == "flux" and guidance > 1 else [[0, 1]]
    engines = [PrefixEngine(stepwise, bank, stepwise.encode(PROMPTS)[r], noise[r]) for r in rows]
    finals = [engine.evaluate([PLAN])[0] for engine in engines]
    expected = torch.cat(finals)
    untouched = own_call()
    deploy.apply(pipe, PrecisionPlan.uniform("fp32", len(PLAN)), levels=("w4a4", "w8a8"))
    assert torch.equal(own_call(), untouched)
    deploy.apply(pipe, PLAN)
    assert torch.equal(own_call(), expected)
    assert torch.equal(own_call(), expected)
    deploy.remove(pipe)
    assert torch.equal(own_call(), untouched)
    assert not torch.equal(expected, untouched)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", EMBEDDED)
def test_embedded_pipelines(family: str, guidance: float) -> None:
    check_against_engine(load_model(family), guidance)


@pytest.mark.parametrize(("family", "heun"), [("sdxl", False), ("sdxl", True), ("pixart", True)])
def test_a_unet_and_solvers_of_second_order(
    untrained: Callable[[str], Any], family: str, heun: bool
) -> None:
    pipe = of_its_own(untrained(family))
    if heun:
        settings = {"beta_schedule": "linear", "prediction_type": "v_prediction"}
        pipe.scheduler = HeunDiscreteScheduler(**settings)
    check_against_engine(LoadedModel(family, pipe, "untrained", ""), 4.0)


def test_both_sequential_passes_of_flux_are_at_one_level(untrained_flux: Any) -> None:
    pipe = of_its_own(untrained_flux)
    deploy.apply(pipe, PLAN)
    seen: list[str] = []
    for level, module in pipe.transformer._made.items():
        module.register_forward_pre_hook(lambda *_, level=level: seen.append(level))
    call(pipe, len(PLAN), true_cfg_scale=3.0, negative_prompt=[""] * 2, height=64, width=64)
    assert seen == [level for level in PLAN for _ in range(2)]


@pytest.mark.parametrize("family", ["flux", "pixart", "sdxl"])
def test_other_step_counts(untrained: Callable[[str], Any], family: str) -> None:
    pipe = of_its_own(untrained(family))
    size: dict[str, Any] = {"height": 64, "width": 64}
    if family == "pixart":  # which would move to the nearest size that it was published for
        size |= {"use_resolution_binning": False, "clean_caption": False}
    deploy.apply(pipe, PrecisionPlan.uniform("fp32", 2))
    with pytest.raises(UsageError, match=r"the plan has 2 steps, the schedule of this call 3"):
        call(pipe, 3, **size)
    deploy.apply(pipe, PrecisionPlan.uniform("fp32", 2), resample=True)
    found = call(pipe, 3, **size)
    deploy.remove(pipe)
    assert torch.equal(call(pipe, 3, **size), found)


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("sd3", StableDiffusion3Img2ImgPipeline, {"strength": 0.5}),
        ("flux", FluxImg2ImgPipeline, {"strength": 0.5, "height": 64, "width": 64}),
        ("flux", FluxInpaintPipeline, {"strength": 0.5, "height": 64, "width": 64}),
        ("sdxl", StableDiffusionXLImg2ImgPipeline, {"strength": 0.5}),
        ("sdxl", StableDiffusionXLImg2ImgPipeline, {"denoising_start": 0.5}),
        ("sdxl", StableDiffusionXLInpaintPipeline, {"strength": 0.5, "height": 64, "width": 64}),
    ],
)
def test_image_to_image_and_inpainting(
    untrained: Callable[[str], Any], family: str, kind: type[Any], options: dict[str, Any]
) -> None:
    """They begin in the middle of the schedule, and of the plan; callbacks of the user go on."""
    pipe = of_its_own(untrained(family), kind)
    generator = torch.Generator().manual_seed(1)
    options = {**options, "image": torch.rand(2, 3, 64, 64, generator=generator)}
    if "Inpaint" in kind.__name__:
        options["mask_image"] = torch.ones(2, 1, 64, 64)
    if "denoising_start" in options:  # it takes the latents of another pipeline
        options["image"] = torch.randn(2, 4, 16, 16, generator=generator)
    plan, steps = PrecisionPlan.parse("w4a4 fp32 w8a8 fp32"), []
    untouched = call(pipe, **options)
    expected = exchanged(pipe, plan, 2, **options)

    def note(_pipe: Any, step: int, _timestep: Any, inputs: Any) -> Any:
        steps.append(step)
        return inputs

    deploy.apply(pipe, PrecisionPlan.uniform("fp32", 4), levels=("w4a4", "w8a8"))
    assert torch.equal(call(pipe, **options), untouched)
    deploy.apply(pipe, plan)
    assert torch.equal(call(pipe, callback_on_step_end=note, **options), expected)
    assert steps == [0, 1]
    assert not torch.equal(expected, untouched)
