"""A plan's image beside the reference's: how alike they are, and what each took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from tmpdiff_bench.deploy.pipeline import apply, remove
from tmpdiff_bench.levels import Level
from tmpdiff_bench.levels.devices import is_reference
from tmpdiff_bench.levels.level import SIMULATED
from tmpdiff_bench.metrics import IMAGE_METRICS
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines import LoadedModel, denoisers
from tmpdiff_bench.pipelines.calls import Call, as_images, check_call, read_argument, refusing
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.prompts.base import prompt_id


@dataclass(frozen=True)
class Comparison:
    """`picture`: the reference's image left, the plan's right, under their titles. `seconds`:
    medians over `repeats` whole images of the reference and of the plan. `simulated`: levels of
    either whose arithmetic is emulated, so that times say nothing.
    """

    picture: Image.Image
    ssim: float
    seconds: tuple[float, float]
    repeats: int
    simulated: tuple[str, ...]

    def __str__(self) -> str:
        """Two lines: the likeness, and the times with what they are worth."""
        reference, plan = self.seconds
        times = f"{reference:.3f} s an image at the reference, {plan:.3f} s with the plan"
        if self.simulated:
            worth = (
                f"{', '.join(self.simulated)} simulated: exact rounding, but times that are no "
                "speed of any kernel"
            )
        else:
            worth = f"measured speedup {reference / plan:.3g}x"
        return f"SSIM {self.ssim:.4f}\n{times} (medians of {self.repeats}); {worth}"


def compare(
    loaded: LoadedModel,
    plan: PrecisionPlan,
    prompt: str,
    *,
    call: Mapping[str, Any] | None = None,
    seed: int = 0,
    repeats: int = 3,
    reference: str = "fp32",
    modules: Mapping[str, Any] | None = None,
) -> Comparison:
    """Make one image with every step at the reference, and with the plan, from the same noise: that
    of a recording of this prompt. `call`: further arguments of the pipeline's call. `modules`: as
    `apply` takes them.

    Both are made once to warm up, then by turns. Raises `UsageError` as `apply` and `check_call`.
    """
    pipe, both = loaded.pipeline, (PrecisionPlan.uniform(reference, len(plan)), plan)
    check_call(pipe, call or {})
    own = {name: read_argument(pipe, name, value) for name, value in (call or {}).items()}
    shared = {**loaded.defaults, **own, "num_inference_steps": len(plan)}
    seeds = [generator_seed(prompt_id(prompt), seed)]
    asked = Call(shared, {"prompt": [prompt]}, seeds)
    images: list[Tensor] = []
    seconds: tuple[list[float], list[float]] = ([], [])
    apply(pipe, plan, levels=[reference], modules=modules)
    try:
        for repeat in tqdm(range(repeats + 1), desc="images", leave=False):
            for side, chosen in enumerate(both):
                apply(pipe, chosen)
                began = time.perf_counter()
                arguments = {
                    **asked.rows([0]).arguments(),
                    "output_type": "np",
                    "return_dict": False,
                }
                with refusing(pipe, lambda: images):
                    image = as_images(pipe(**arguments)[0])
                if repeat == 0:
                    images.append(image)
                else:
                    seconds[side].append(time.perf_counter() - began)
    finally:
        remove(pipe)
    denoiser = next(iter(denoisers(pipe).values()))
    known = (name for name in dict.fromkeys((reference, *plan)) if name not in (modules or {}))
    levels = map(Level.parse, known)
    emulated = [x for x in levels if x.backend == SIMULATED and not is_reference(x, denoiser)]
    return Comparison(
        picture=side_by_side(*(to_pil_image(image[0]) for image in images)),
        ssim=1 - float(IMAGE_METRICS["one_minus_ssim"](images[1], images[0])[0]),
        seconds=(statistics.median(seconds[0]), statistics.median(seconds[1])),
        repeats=repeats,
        simulated=tuple(level.name for level in emulated),
    )


def side_by_side(reference: Image.Image, plan: Image.Image) -> Image.Image:
    """Two images of one size under their titles, a gap between them."""
    width, height = reference.size
    letters, gap = max(12, height // 32), max(2, width // 64)
    top = 3 * letters // 2
    sheet = Image.new("RGB", (2 * width + gap, height + top), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(letters)
    for left, title, image in ((0, "reference", reference), (width + gap, "plan", plan)):
        draw.text((left + 2, 0), title, fill="black", font=font)
        sheet.paste(image, (left, top))
    return sheet
